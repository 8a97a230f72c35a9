"""``--as released``: every difference is set, and what the command line gives goes first."""

from pathlib import Path

import pytest

from goat_jax.adapters.parts.aux_losses import LoadBalancing
from goat_jax.data.tasks.text import TextTask, load_examples
from goat_jax.errors import UserError
from kinds import expect
from paper_models import write_questions
from reproduction import sweep
from reproduction.experiments import TASKS
from reproduction.released import DIFFERENCES, EVERY, released_evaluation
from reproduction.sweep import PaperRun

PAGE = Path(__file__).resolve().parents[2] / "docs" / "paper.md"
FIRST = {TASKS[task].config: task for task in reversed([*TASKS])}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_questions(tmp_path_factory.mktemp("data"))
    (root / "CodeFeedback-Filtered-Instruction.jsonl").touch()
    return root


def both(task, data, method="goat"):
    """A run as in the paper and as released."""
    name = TASKS[task].config
    folder = f"folder={data}" + (f",questions={data}" if name in ("math", "code", "chat") else "")
    options = "" if name in ("vision", "glue") else folder
    return [PaperRun(task, method, 0).config(options, released=each) for each in (False, True)]


@pytest.mark.parametrize("name", EVERY)
def test_scale_loss_dropout_and_warmup_of_every_run(name, data):
    printed, released = both(FIRST[name], data)
    spec, as_in_paper = released.adapter.spec(), printed.adapter.spec()
    assert spec.scale(4096, None, spec).tolist() == [16.0] * 8  # alpha / R in every script
    assert spec.aux_loss == LoadBalancing(reference_code=True, count_padding=True)
    assert as_in_paper.aux_loss == LoadBalancing()
    assert spec.dropout_per_expert and not as_in_paper.dropout_per_expert
    steps = released.train.total_steps
    assert released.optimizer.warmup_steps == -(-3 * steps // 100)
    assert printed.optimizer.warmup_steps == 100
    lora = both(FIRST[name], data, "lora")[1].adapter.spec()
    assert lora.scale == both(FIRST[name], data, "lora")[0].adapter.spec().scale


def test_images_have_a_linear_head_and_nine_tenths_of_the_rows(data):
    printed, released = both("dtd", data)
    assert released.model.options == {"head": "linear"}
    assert released.adapter.modules_to_save == ("task-head",)
    assert printed.model.options == {"head": "zero_shot"} and not printed.adapter.modules_to_save
    assert released.task.train_limit == 3384 and printed.task.train_limit is None
    assert (printed.train.steps, released.train.steps) == (76 * 7, 76 * 6)
    assert both("svhn", data)[1].task.train_limit == 73257 - 5000
    assert both("eurosat", data)[1].task.train_limit is None


def test_glue_has_one_prompt_text_and_no_balance_loss(data):
    printed, released = both("rte", data)
    rows = {"train": str(data / "rte/train.json"), "evaluation": str(data / "rte/validation.json")}
    task = expect(TextTask, sweep.override(released, [
        "--task.train", rows["train"], "--task.evaluation", rows["evaluation"]
    ], "test").task)  # fmt: skip
    text = "determine if the second sentence entails the first sentence: a.\nb.\nresult: "
    assert load_examples(task, "train").texts[0][0] == text
    assert len(load_examples(task, "evaluation").texts) == 1
    assert released.adapter.spec().aux_weight == 0.0 and printed.adapter.spec().aux_weight == 1e-3
    printed, released = both("mnli", data)
    assert "mismatched" in printed.task.evaluation
    task = expect(TextTask, released.task)
    assert "mismatched" not in task.evaluation and not task.parts
    assert released.task.metrics == ("accuracy",)


def test_answers_are_sampled_or_searched():
    assert released_evaluation("math") == released_evaluation("code")
    assert released_evaluation("math") == {"temperature": 0.8, "top_p": 0.95}
    assert released_evaluation("commonsense") == {"beams": 4}
    assert not any(map(released_evaluation, ("chat", "vision", "glue")))


def test_gsm8k_is_read_by_the_strict_pattern_in_both():
    assert TASKS["math"].columns == {"math": "accuracy_strict"}


def test_what_is_given_goes_first(data, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        sweep.measures, "trained_scores", lambda config, options, _: seen.append((config, options))
    )
    words = ["--tasks", "math", "--methods", "goat:scale=theory", "--as", "released", "--top-p"]
    words += ["0.5", "--optimizer.warmup-steps", "7", "--out", str(tmp_path)]
    words += ["--options", f"folder={data},questions={data}"]
    assert sweep.run_experiment("table2", words) == 143
    ((config, options),) = seen
    assert config.optimizer.warmup_steps == 7 and config.adapter.scale == "theory"
    assert (options.temperature, options.top_p) == (0.8, 0.5)


def test_a_prompt_with_an_unknown_column_is_refused():
    with pytest.raises(UserError, match="does not fit"):
        TextTask("a", "b", "c", ("text",), "label", ("x", "y"), ("accuracy",), prompt="{txt}")


def test_the_page_lists_every_difference():
    page = PAGE.read_text("utf-8")
    for difference in DIFFERENCES:
        names = "every" if difference.configs == EVERY else ", ".join(difference.configs)
        assert f"| {names} | {difference.what} |\n" in page
