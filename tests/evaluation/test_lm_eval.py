"""`goat_jax` as a model of lm-evaluation-harness, against its own `hf` on the same weights.

Skipped without the package: `.ci/integrations` makes an environment that has it.
"""

import json
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from goat_jax.cli.main import main
from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.errors import UserError
from tiny_language import COLOURS, write_model
from tiny_tokenizers import TEMPLATES

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra 'lm-eval'")
pytestmark = [
    pytest.mark.slow,
    # lm-eval and the packages that it needs warn of each other.
    pytest.mark.filterwarnings("ignore"),
]

NAMES = list(COLOURS.values())
CHOICES = [
    {"question": f"what is the {thing} ?", "options": options, "label": NAMES.index(colour)}
    for number, (thing, colour) in enumerate(COLOURS.items())
    for options in [NAMES if number % 2 else [f"the {name} thing" for name in NAMES]]
]
WORDS = [*COLOURS, *NAMES, "the", "is"]
DRAWS = np.random.default_rng(0)
TEXTS = [
    {"question": f"the {thing} is", "text": " ".join(DRAWS.choice(WORDS, 4 + 60 * number))}
    for number, thing in enumerate(COLOURS)
]
"""The longest have several windows of the model's context of 64 tokens."""

TASKS = {
    "colours_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "label",
        "doc_to_choice": "{{options}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "colours_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "colours_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["coal"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval")
    write_model(folder / "model")
    tokenizer: Any = load_tokenizer(folder / "model")
    tokenizer.chat_template = TEMPLATES["chatml"]
    tokenizer.save_pretrained(folder / "model")
    (folder / "tasks").mkdir()
    for name, task in TASKS.items():
        rows = CHOICES if "choice" in name else TEXTS
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}
        settings = {"task": name, "test_split": "test", **source, **task}
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def evaluate(folder):
    import_module("goat_jax.evaluation.lm_eval")  # which registers the model
    tasks = import_module("lm_eval.tasks")
    manager = tasks.TaskManager(include_path=str(folder / "tasks"), include_defaults=False)

    def evaluate(model, **options):
        more = {"device": "cpu", "dtype": "float32"} if model == "hf" else {}
        return lm_eval.simple_evaluate(
            model=model,
            model_args={"pretrained": str(folder / "model"), **more},
            batch_size=4,
            task_manager=manager,
            **{"tasks": list(TASKS), "bootstrap_iters": 0, **options},
        )

    return evaluate


CHAT = {"apply_chat_template": True, "num_fewshot": 1}


@pytest.mark.parametrize("options", [{}, CHAT], ids=["plain", "chat"])
def test_equals_the_harness_own_model_to_the_last_printed_digit(evaluate, options):
    make_table = import_module("lm_eval.utils").make_table
    mine, theirs = (evaluate(model, **options) for model in ("goat_jax", "hf"))
    assert make_table(mine) == make_table(theirs)
    for name in TASKS:
        for one, other in zip(mine["samples"][name], theirs["samples"][name], strict=True):
            assert one["arguments"] == other["arguments"]
    answers = [
        [sample["resps"] for sample in each["samples"]["colours_answer"]] for each in (mine, theirs)
    ]
    assert answers[0] == answers[1] and any(answer for ((answer,),) in answers[0])


def test_the_command_writes_scores_and_questions_and_keeps_answers(folder, evaluate, capsys):
    for _ in range(2):
        task = ["--task", "colours_choice", "--task-files", str(folder / "tasks")]
        out = ["--out", str(folder / "out"), "--cache", str(folder / "cache"), "--json"]
        arguments = ["evaluate", str(folder / "model"), "--harness", "lm-eval", *task, *out]
        assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = evaluate("hf", tasks=["colours_choice"])["results"]["colours_choice"]
    assert printed["scores"]["acc"] == expected["acc,none"]
    lines = (folder / "out" / "colours_choice-lm-eval-predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(CHOICES)
    assert len(list((folder / "cache").glob("model-*"))) == 1


def test_options_of_a_task_that_are_not_possible_are_named(folder):
    from goat_jax.evaluation.lm_eval import GoatLM

    model = GoatLM(str(folder / "model"))
    with pytest.raises(UserError, match="generation with num_beams is not possible"):
        model._sampling({"until": [], "num_beams": 4})
    with pytest.raises(UserError, match="64"):
        model._sampling({"max_gen_toks": 64})
    with pytest.raises(UserError, match="batch_size 'auto'"):
        GoatLM(str(folder / "model"), batch_size="auto")


def test_unknown_tasks_are_named(folder, capsys):
    assert (
        main(["evaluate", str(folder / "model"), "--harness", "lm-eval", "--task", "arc_esy"]) == 2
    )
    assert "did you mean 'arc_easy'" in capsys.readouterr().err
