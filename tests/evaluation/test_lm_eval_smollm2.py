"""SmolLM2's real weights in lm-evaluation-harness: `goat_jax` against the harness's own `hf`.

Both read the same GGUF file, `hf` by transformers' reader, and compute in float32.

Skipped without the harness: `.ci/integrations` makes an environment that has it.
"""

import json
from importlib import import_module

import pytest

from goat_jax.data.tasks.evaluation import load_questions
from goat_jax.errors import UserError
from goat_jax.pretrained.packaged_models import smollm2_file
from kinds import eval_task

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra 'lm-eval'")
pytestmark = [
    pytest.mark.nightly,
    # lm-eval and the packages that it needs warn of each other.
    pytest.mark.filterwarnings("ignore"),
]

QUESTIONS, PROBLEMS = 12, 4
NEAR = 1e-5
"""Relative difference of a text's log-likelihoods: torch's float32 sum over this vocabulary of
49,152 loses 4e-6 (with the argument softmax_dtype=float64 `hf` is within 2e-6). It moves the sixth
digit of a word perplexity, of which the harness prints seven, so the tables have others."""

TASKS = {
    "arc_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "label",
        "doc_to_choice": "{{options}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "gsm8k_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{prompt}} {{answer}}",
        "metric_list": [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "gsm8k_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 16},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def rows(data):
    """Returns the rows of every task, from the development data."""
    easy = {"folder": str(data / "commonsense"), "cloze": True, "question_limit": QUESTIONS}
    sums = {"folder": str(data / "gsm8k"), "question_limit": PROBLEMS}
    choices = [
        {
            "prompt": question.prompt,
            "options": [option.strip() for option in question.continuations],
            "label": question.labels.index(question.answer),
        }
        for question in load_questions(eval_task("arc_easy", **easy))
    ]
    problems = [
        {"prompt": question.prompt, "answer": question.row["answer"]}
        for question in load_questions(eval_task("gsm8k", **sums))
    ]
    return {name: choices if "choice" in name else problems for name in TASKS}


@pytest.fixture(scope="module")
def evaluate(shared, tmp_path_factory):
    """Function that evaluates a model on the three tasks, which read local files alone."""
    folder = tmp_path_factory.mktemp("lm_eval")
    for name, lines in rows(shared / "data").items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in lines))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}
        settings = {"task": name, "test_split": "test", **source, **TASKS[name]}
        (folder / f"{name}.yaml").write_text(json.dumps(settings))
    import_module("goat_jax.evaluation.lm_eval")  # which registers the model
    tasks = import_module("lm_eval.tasks")
    manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)

    def evaluate(model, **arguments):
        return lm_eval.simple_evaluate(
            model=model,
            model_args={"dtype": "float32", **arguments},
            batch_size=4,
            tasks=list(TASKS),
            task_manager=manager,
            bootstrap_iters=0,
        )

    return evaluate


def test_three_tasks_have_the_harness_own_numbers_to_the_last_printed_digit(evaluate):
    try:
        path = smollm2_file()
    except UserError as error:
        pytest.skip(str(error))
    make_table = import_module("lm_eval.utils").make_table
    mine = evaluate("goat_jax", pretrained="package:smollm2")
    same = {"pretrained": str(path.parent), "gguf_file": path.name}
    theirs = evaluate("hf", **same, device="cpu")
    assert make_table(mine) == make_table(theirs)
    for name in TASKS:
        for one, other in zip(mine["samples"][name], theirs["samples"][name], strict=True):
            assert one["arguments"] == other["arguments"]
    texts, answers = (
        [[sample["resps"][0][0] for sample in each["samples"][name]] for each in (mine, theirs)]
        for name in ("gsm8k_text", "gsm8k_answer")
    )
    assert texts[0] == [pytest.approx(each, rel=NEAR) for each in texts[1]]
    assert answers[0] == answers[1] and any(answers[0])
