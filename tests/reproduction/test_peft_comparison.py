"""PEFT's method comparison: its parser, its measure of forgetting, and its result files."""

import json

import jax
import numpy as np
import pytest

from goat_jax.data.tasks.evaluation import EvalTask, load_questions
from goat_jax.data.tasks.filters import SELECTIONS
from goat_jax.data.tasks.formats.stated_answer import stated_answer
from goat_jax.errors import UserError
from goat_jax.evaluation.model import load_eval_model
from kinds import expect
from programs import load_program
from reproduction.labels import read_label
from reproduction.peft_results import beside, result_file
from tiny_language import write_model

PROGRAM = load_program("peft_comparison")


# From the branches of PEFT's parse_answer, convert_to_decimal and get_accuracy.
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("... dollars.\n#### 18", "18.0"),
        ("#### 18\nThe answer is: 20", "20.0"),  # the first phrase of the list counts
        ("The answer is: 1 The answer is: 2.", "2.0"),  # where it occurs last
        ("The answer is 50%", "50.0"),
        ("The final answer is $3.50!", "3.5"),
        ("The answer is: 20/35", str(20 / 35)),
        ("The answer is: 1/0", "1/0"),
        ("The answer is: 1/2/3", "1/2/3"),
        ("#### 1,000", "1,000"),  # not a number there
        ("The answer is: 7\n\nQuestion: more?", "7.0"),
        ("the answer is: 7", None),
        ("18", None),
    ],
)
def test_answers_are_read_as_in_peft(text, answer):
    assert stated_answer(text) == answer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    row = {"question": "what is the sky ?", "answer": "blue\n#### 2"}
    for name, count in (("train", 12), ("test", 3)):
        (root / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * count)
    (root / "wiki.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("the sky is blue", "snow is white"))
    )
    return root


def config_of(data, text="lora", *words):
    label = read_label(text)
    return PROGRAM.config_of(label, f"folder={data},questions={data}", words, data)


def test_settings_are_pefts(data):
    config = config_of(data)
    spec, train = config.adapter.spec(), config.train
    assert (spec.total_rank, spec.alpha, spec.dropout) == (32, 64.0, 0.0)
    assert config.adapter.target_modules == ("q_proj", "v_proj")
    assert (train.steps, train.batch_size, train.max_length) == (5000, 4, 768)
    assert (train.eval_every, train.eval_batch_size) == (250, 50)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-4, 0.1)
    assert (optimizer.warmup_steps, optimizer.schedule, optimizer.max_grad_norm) == (
        500, "cosine", 1.0
    )  # fmt: skip
    task = expect(EvalTask, config.task)
    assert (task.max_new_tokens, task.loss_on, task.packing, task.stop) == (300, "all", False, ())
    question = load_questions(task)[0]
    assert question.prompt == "Question: what is the sky ? Think step by step.\nAnswer:"
    assert question.answer == "2.0"


def test_long_rows_are_left_out():
    keep = SELECTIONS["up_to_1300_characters"]
    assert keep({"query": "a" * 1000, "response": "b" * 299}) is not None
    assert keep({"query": "a" * 1000, "response": "b" * 300}) is None


def test_the_loss_of_texts_is_per_token(tmp_path):
    model = load_eval_model(str(write_model(tmp_path / "llama")))
    texts = ["the sky is blue", "snow", "what is the thing ?"]
    found = model.scorer().mean_loss(texts, max_length=4, batch_size=2)
    decoder = model.generator()
    expected = []
    for text in (texts[0], texts[2]):  # one token alone has no prediction
        ids = np.array([decoder.tokenizer(text)["input_ids"][:4]])
        for place in range(1, ids.shape[1]):
            mask = np.ones_like(ids[:, :place])
            logits, _ = decoder._extend(
                decoder._trainable, decoder._base, ids[:, :place], mask, decoder._empty(1, 8)
            )
            expected.append(-jax.nn.log_softmax(logits[0])[ids[0, place]])
    assert found == pytest.approx(float(np.mean(expected)), rel=1e-5) and len(expected) == 6
    with pytest.raises(UserError, match="none of 1 texts has two tokens"):
        model.scorer().mean_loss(["snow"], max_length=4)


RECORDS = [
    {"kind": "train", "step": 2 * n, "task_loss": float(n), "tokens_per_second": 10.0 * n}
    | {"seconds": 2.0, "device_peak_bytes": 2.0**30 * n}
    for n in (1, 2, 3)
]


def result(data, text="goat@16:rho=5", scores=None, **sizes):
    words = ["--train.steps", "6", "--train.eval-every", "4"]
    config = config_of(data, text, *words)
    own = {"name": text, "created": "2026", "seconds": 9.0, "trained": 10, "total": 100} | sizes
    scores = scores or {"accuracy": 0.25, "forgetting": 0.5}
    return result_file(config, [*RECORDS, {"kind": "eval", "step": 6}], scores, **own)


def test_result_files_have_pefts_fields(data):
    saved = json.loads(json.dumps(result(data)))
    assert set(saved) == {"run_info", "train_info", "meta_info"}
    info = saved["train_info"]
    assert info["accelerator_memory_max"] == 3 * 2**30 and info["train_time"] == 6.0
    assert (info["num_trainable_params"], info["file_size"], info["status"]) == (10, 40, "success")
    first, second, test = info["metrics"]
    assert (first["step"], first["train loss"], first["train samples"]) == (4, 1.5, 16)
    assert first["tokens / sec"] == 15.0 and (second["step"], second["train loss"]) == (6, 3.0)
    expected = {"step": 6, "test accuracy": 0.25, "train loss": 3.0, "train samples": 24}
    assert test == expected | {"train total tokens": 120, "forgetting": 0.5}
    run = saved["run_info"]
    assert run["train_config"]["optimizer_kwargs"] == {"lr": 1e-4, "weight_decay": 0.1}
    assert run["train_config"]["query_template"].startswith("Question: {query} Think")
    assert (run["peft_config"]["peft_type"], run["peft_config"]["r"]) == ("GOAT", 16)
    assert {"peft-version", "torch-version"} <= {*saved["meta_info"]["package_info"]}
    assert result(data, "full")["run_info"]["peft_config"] is None
    assert "forgetting" not in result(data, scores={"accuracy": 0.0})["train_info"]["metrics"][-1]


def test_files_are_set_side_by_side(data, tmp_path):
    for name, accuracy in (("a", 0.25), ("b", 0.5)):
        content = result(data, scores={"accuracy": accuracy}, name=name)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    head, _, first, second = beside(sorted(tmp_path.glob("*.json"))).splitlines()
    assert "forgetting" in head and first.startswith("| b") and second.startswith("| a")
    assert [cell.strip() for cell in first.split("|")[2:5]] == ["0.5", "-", "3"]
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match=r"c\.json is not a result file"):
        beside([tmp_path / "c.json"])


@pytest.mark.nightly
def test_a_method_is_compared_from_end_to_end(data, tmp_path, capsys):
    model = write_model(tmp_path / "llama")
    words = ["--methods", "lora@8", "--out", str(tmp_path / "out"), "--quiet"]
    words += ["--options", f"folder={data},questions={data}", "--wiki", str(data / "wiki.jsonl")]
    words += ["--model.path", str(model), "--model.dtype", "float32", "--max-new-tokens", "2"]
    words += ["--train.steps", "3", "--train.max-length", "30", "--train.num-buckets", "1"]
    words += ["--optimizer.warmup-steps", "0", "--train.log-every", "1"]
    assert PROGRAM.main(words) == 0
    printed = capsys.readouterr().out
    (path,) = (tmp_path / "out" / "results").iterdir()
    written = json.loads(path.read_text())
    assert written["run_info"]["train_config"]["generation_kwargs"] == {"max_new_tokens": 2}
    last = written["train_info"]["metrics"][-1]
    assert last["test accuracy"] == 0.0 and last["forgetting"] != 0.0 and last["train loss"] > 0
    assert PROGRAM.main([*words, "--beside", str(path.parent)]) == 0
    assert printed.splitlines()[-1] in capsys.readouterr().out
