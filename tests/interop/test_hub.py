"""Uploads to the Hugging Face hub: only when asked, private by default, one line if refused."""

import types
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from goat_jax.cli.main import main
from goat_jax.cli.verbs import export as export_verb
from goat_jax.config.run import ModelConfig, RunConfig
from goat_jax.data.tasks.registry import files, language_files
from goat_jax.interop.export_run import Exported
from goat_jax.interop.model_card import Facts, write_card

TOKEN = "hf_secret"


class Hub:
    """Stands in for `HfApi`: the requests to the hub and its answers."""

    def __init__(self, refusal=None, login=None):
        self.asked, self.refusal, self.login = [], refusal, login

    def whoami(self):
        if self.login is not None:
            raise self.login
        return {"name": "ann"}

    def create_repo(self, repo, *, private, exist_ok):
        self.asked.append(("create", repo, private, exist_ok))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.refusal is not None:
            raise self.refusal
        names = sorted(path.name for path in folder_path.iterdir())
        self.asked.append(("upload", repo_id, names, commit_message))


@pytest.fixture
def export(tmp_path, monkeypatch, capsys):
    """Runs the verb with a hub, and an export that writes one file."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def export_run(folder, to, out, **options):
        out.mkdir()
        (out / "README.md").write_text("card")
        return Exported(out, 7, {"run": {"accuracy": 0.5}}, ())

    monkeypatch.setattr(export_verb, "export_run", export_run)

    def run(hub, *words):
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
        code = main(["export", "runs/a", str(tmp_path / "out"), "--to", "peft", *words])
        said = capsys.readouterr()
        assert TOKEN not in said.out + said.err
        return code, said.err

    return run


@pytest.mark.parametrize(("words", "private"), [([], True), (["--public"], False)])
def test_a_folder_is_pushed_after_it_was_written(words, private, export):
    hub = Hub()
    code, said = export(hub, "--push", "ann/a", *words)
    assert code == 0 and said == "uploaded to https://huggingface.co/ann/a\n"
    assert hub.asked == [
        ("create", "ann/a", private, True),
        ("upload", "ann/a", ["README.md"], "goat-jax export: peft of a, step 7"),
    ]


def test_nothing_is_uploaded_without_being_asked(export):
    hub = Hub(login=AssertionError("asked"))
    assert export(hub) == (0, "") and hub.asked == []


@pytest.mark.parametrize(
    ("hub", "words", "message"),
    [
        (Hub(), ["--push", "alone"], "--push 'alone' is not a repository: give USER/NAME"),
        (Hub(), ["--push", "a/b/c"], "is not a repository"),
        (Hub(), ["--public"], "--public needs --push USER/NAME"),
        (Hub(login=LocalTokenNotFoundError("no")), ["--push", "a/b"], "run `hf auth login`"),
    ],
    ids=["alone", "path", "public", "login"],
)
def test_what_cannot_be_pushed_is_said_before_the_export(hub, words, message, export, tmp_path):
    code, said = export(hub, *words)
    assert code == 2 and message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists() and hub.asked == []


ANSWER: Any = types.SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    "error",
    [
        HfHubHTTPError("403 Forbidden\nmore", response=ANSWER),
        HfHubHTTPError.__bases__[0]("no route to host"),
    ],
    ids=["refused", "away"],
)
def test_a_refused_upload_keeps_the_folder_and_is_one_line(error, export, tmp_path):
    code, said = export(Hub(refusal=error), "--push", "ann/a")
    assert code == 1 and said.count("\n") == 1
    assert "was not uploaded to ann/a: " in said and "hf upload ann/a" in said
    assert (tmp_path / "out" / "README.md").exists()


FACTS = Facts("A LoRA", "peft", 3, {"run": {"accuracy": 0.5}}, 10, None, {}, "org/base", "")


def card_of(task, base="org/base", **scores) -> Any:
    facts = FACTS.__class__(**{**vars(FACTS), "base": base, "scores": {"run": scores}})
    return ModelCard(write_card("mine", RunConfig(ModelConfig(base), task), facts, False)).data


def test_the_card_names_task_and_data_of_the_hub():
    text = card_of(files("hf:ann/set@train", "dev.csv", labels=("a", "b")), accuracy=0.5)
    assert text.datasets == ["ann/set"] and text.pipeline_tag == "text-classification"
    (result,) = text.eval_results
    assert (result.dataset_type, result.dataset_name) == ("ann/set", "files")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.5)
    chat = card_of(language_files("a.jsonl", "b.jsonl"), loss=float("nan"))
    assert chat.pipeline_tag == "text-generation" and chat.datasets is None
    assert not chat.eval_results


def test_a_base_model_in_a_folder_is_no_metadata():
    card = card_of(files("a.csv", "b.csv", labels=("a", "b")), base="/models/a: b", accuracy=1.0)
    assert card.base_model is None and "base_model_relation" not in card.to_dict()
