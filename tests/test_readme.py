"""The README's commands and Python run as they stand, on a tiny model of the same name.

So does the Python of two pages that continue from there.
"""

import functools
import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

import goat_jax
from goat_jax.adapters.methods import METHODS
from goat_jax.cli.main import VERBS, main
from tiny_images import write_photos, write_vit
from tiny_language import COLOURS, write_model
from tiny_run import BAD, GOOD, write_checkpoint

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def write_folder(folder: Path) -> None:
    """Writes the files that the README names: tiny models under the hub's names, and rows."""
    write_checkpoint(folder / "FacebookAI" / "roberta-base")
    rows = [
        f"the film is {words[n % 5]} and a story {words[n % 3]},{int(words is GOOD)}"
        for n in range(15)
        for words in (GOOD, BAD)
    ]  # of one length, so of one compiled step
    (folder / "reviews.csv").write_text("\n".join(["review,sentiment", *rows]) + "\n")
    (folder / "new.csv").write_text("review\nthe film is warm\nthe film is cold\n")


def commands(section: str) -> list[list[str]]:
    lines = re.findall(r"^    goat-jax (.+)$", section, flags=re.M)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.slow
def test_the_commands_and_the_python_run(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    section = TEXT.split("## From a file")[1].split("## ")[0]
    typed = [words for words in commands(section) if "reviews" in " ".join(words)]
    assert [words[0] for words in typed] == ["train", "predict", "evaluate"]
    for words in typed:
        assert main(words) == 0, words
    assert (tmp_path / "predictions.csv").read_text().startswith("review,prediction,probability_0")
    # The run of the commands is finished, so it is not trained again; it is loaded once.
    monkeypatch.setattr(goat_jax, "load", functools.cache(goat_jax.load))
    names = run_python(TEXT)
    assert np.shape(names["predictions"].probabilities) == (2, 2)
    assert (tmp_path / "reviews-goat" / "adapter_model.safetensors").is_file()

    names = run_python((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    assert np.isfinite(names["loss"])
    names = run_python((ROOT / "docs" / "configs.md").read_text(encoding="utf-8"))
    assert names["config"].adapter.method == "dora"


@pytest.mark.nightly
def test_the_commands_on_chats_and_photos_run(tmp_path, monkeypatch):
    write_model(tmp_path / "Qwen" / "Qwen2.5-0.5B-Instruct", num_kv_heads=4)
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (tmp_path / "Qwen" / "Qwen2.5-0.5B-Instruct" / "chat_template.jinja").write_text(template)
    chats = [
        [{"role": "user", "content": f"what is {name} ?"}, {"role": "assistant", "content": color}]
        for name, color in COLOURS.items()
    ]
    lines = (json.dumps({"messages": chat}) + "\n" for chat in chats * 3)
    (tmp_path / "chats.jsonl").write_text("".join(lines))
    write_vit(tmp_path / "openai" / "clip-vit-base-patch32")
    write_photos(tmp_path / "photos", 10)
    monkeypatch.chdir(tmp_path)
    section = TEXT.split("## From a file")[1].split("## ")[0]
    typed = [words for words in commands(section) if "reviews" not in " ".join(words)]
    assert [words[0] for words in typed] == ["train", "generate", "train"]
    (drawn,) = re.findall(r"`goat-jax (plot runs/demo)`", section)
    for words in [*typed, drawn.replace("demo", "chats").split()]:
        assert main(words) == 0, words
    assert list(Path("runs/chats").rglob("*.html"))  # the page of figures


def run_python(page: str) -> dict:
    """Executes the Python of a page, as one program."""
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", page, flags=re.S):
            exec(block, names)
    return names


def test_every_method_is_in_the_table_with_its_paper():
    table = TEXT.split("## Methods")[1].split("## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:\[([\d.]+)\])?", table, flags=re.M))
    assert set(rows) == set(METHODS)
    assert [name for name, paper in rows.items() if paper not in METHODS[name].source] == []


def test_every_method_is_in_the_table_of_its_parts():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)`", page, flags=re.M)) == set(METHODS)


def test_the_verbs_it_shows_exist():
    assert {words[0] for words in commands(TEXT)} <= set(VERBS)


def test_every_path_of_the_tree_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for line in filter(str.strip, text.split("## The tree")[1].split("##")[0].splitlines()):
        indent = len(line) - len(line.lstrip())
        for name in re.findall(r"^[\w./]+(?: [\w]+\.py)*", line.strip())[0].split():
            folder = ROOT if indent == 4 else ROOT / "goat_jax"
            assert (folder / name).exists(), name
