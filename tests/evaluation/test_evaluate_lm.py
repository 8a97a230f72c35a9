"""Eval tasks from end to end on a tiny model: trained some steps, scored by every method."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from goat_jax.cli.main import main
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.pipeline.encoding import Piece, encode_pieces
from goat_jax.data.tasks.benchmarks.commonsense import FOLDERS
from goat_jax.data.tasks.registry import make_task
from goat_jax.errors import RunFailed, UserError
from goat_jax.evaluation import evaluate_lm  # noqa: F401  whole before any part is replaced
from goat_jax.evaluation.generate_and_loglikelihood import answer_all
from goat_jax.evaluation.model import load_eval_model
from goat_jax.evaluation.sampler import Answer, Sampling
from goat_jax.models.decoder.model import Decoder, tiny_decoder_config
from goat_jax.models.torch_layout import torch_tensors
from goat_jax.nn.dense import merge_model
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.sharding.config import MeshConfig
from goat_jax.training.trainer import fit
from kinds import compiled

CONTEXT = 512


def byte_tokenizer(folder):
    """Makes each byte a token: any text in the official schema can be read, whatever it says."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["[PAD]", "[EOS]", *letters]
    raw = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", eos_token="[EOS]")
    fast.save_pretrained(folder)
    return len(words)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes") / "tiny"
    folder.mkdir()
    size = byte_tokenizer(folder)
    config = tiny_decoder_config(vocab_size=size, hidden_size=32, eos_ids=(1,))
    save_file(torch_tensors(Decoder(config, rngs=nnx.Rngs(0))), folder / "model.safetensors")
    settings = {
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def instruction(number, right):
    options = " ".join(f"Answer{n}: {'ab'[n - 1] * number}" for n in (1, 2))
    return {
        "instruction": f"Please choose the correct answer to the question: {number}?\n\n"
        f"{options}\n\nAnswer format: answer1/answer2",
        "input": "",
        "output": f"the correct answer is answer{right}",
        "answer": f"answer{right}",
    }


CODE = {
    "prompt": 'def one():\n    """1"""\n',
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(f):\n    assert f() == 1\n",
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows in the official columns of every family."""
    root = tmp_path_factory.mktemp("data")
    rows = [instruction(n % 7 + 1, n % 2 + 1) for n in range(12)]
    for parts in FOLDERS.values():
        write(root / "cs" / parts[0] / "train.jsonl", rows)
        write(root / "cs" / parts[0] / "test.jsonl", rows[:3])
    (root / "cs" / "commonsense_170k.json").write_text(json.dumps(rows))
    math = [
        {"query": f"{n} + 1?", "response": f"{n + 1}\nThe answer is: {n + 1}", "type": "GSM_SV"}
        for n in range(12)
    ]
    (root / "math").mkdir()
    (root / "math" / "MetaMathQA-395K.json").write_text(json.dumps(math))
    write(
        root / "math" / "test.jsonl",
        [{"question": f"{n} + 2?", "answer": f"#### {n + 2}"} for n in range(3)],
    )
    code = [{"query": f"Return {n}.", "answer": f"```python\nreturn {n}\n```"} for n in range(12)]
    write(root / "code" / "codefeedback.jsonl", code)
    write(root / "code" / "test.jsonl", [CODE | {"task_id": f"HumanEval/{n}"} for n in range(3)])
    chat = [{"instruction": f"Say {n}.", "output": f"{n}."} for n in range(12)]
    write(root / "chat" / "wizardlm.jsonl", chat)
    questions = [
        {"question_id": 81 + n, "category": c, "turns": ["Say a.", "Again."]}
        for n, c in enumerate(["writing", "math", "stem"])
    ]
    write(root / "chat" / "question.jsonl", questions)
    return root


def task_of(data, name, **more):
    options = {
        "commonsense170k": {"folder": data / "cs", "held_out": 2},
        "metamath": {"folder": data / "math", "questions": data / "math", "held_out": 2},
        "codefeedback": {"folder": data / "code", "questions": data / "code", "held_out": 2},
        "wizardlm": {"folder": data / "chat", "questions": data / "chat", "held_out": 2},
    }
    given = options.get(name, {"folder": data / "cs"})
    given = {key: value if key == "held_out" else str(value) for key, value in given.items()}
    return make_task(name, **given, packing=False, max_new_tokens=8, **more)


def run_config(model, task, out, steps=2, learning_rate=1e-3):
    return RunConfig(
        model=ModelConfig(str(model)),
        task=task,
        adapter=AdapterConfig("lora", ("q_proj", "up_proj"), (), total_rank=4, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=1),
        train=TrainConfig(
            steps=steps,
            batch_size=4,
            max_length=384,
            eval_batch_size=4,
            eval_every=steps,
            num_buckets=1,
        ),
        out=str(out),
    )


def said(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# One family in CI: the others differ in their rows and in how they are scored, which have tests of
# their own.
@pytest.mark.parametrize(
    ("name", "arguments", "scores", "lines"),
    [
        pytest.param(
            "commonsense170k",
            ["--limit", "1"],
            {"accuracy", "accuracy/piqa"},
            8,
            marks=pytest.mark.slow,
        ),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in [
                ("metamath", [], {"accuracy", "accuracy_strict", "without_answer"}, 3),
                ("codefeedback", ["--run-programs", "--seconds", "20"], {"pass@1"}, 3),
                ("wizardlm", [], {"answered"}, 3),
            ]
        ),
    ],
)
def test_the_whole_path_of_every_family(
    model, data, tmp_path, capsys, name, arguments, scores, lines
):
    """Train, then `goat-jax evaluate RUN`, which knows by the task how to score."""
    config = run_config(model, task_of(data, name), tmp_path / "run")
    assert fit(config, progress=False).after["perplexity"] > 0
    capsys.readouterr()
    assert main(["evaluate", config.out, "--json", "--quiet", "--batch-size", "4", *arguments]) == 0
    (found,) = said(capsys)
    assert scores <= found["scores"].keys() and found["task"] == name
    assert found["files"][0].startswith(str(tmp_path / "run" / "evaluation"))
    records = lines_of(found["files"][0])
    assert len(records) == lines
    assert json.loads(Path(found["files"][-1]).read_text()) == found["scores"]


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A run of one step on a multiple choice."""
    folder = tmp_path_factory.mktemp("boolq")
    rows = [instruction(n % 7 + 1, 2) for n in range(8)]
    write(folder / "boolq" / "train.jsonl", rows)
    write(folder / "boolq" / "test.jsonl", [*rows[:5], instruction(3, 1)])
    task = make_task("boolq", folder=str(folder), packing=False)
    config = run_config(model, task, folder / "run", steps=1)
    fit(config, progress=False)
    return config


@pytest.mark.slow
def test_answers_are_marked(run, capsys, monkeypatch):
    from goat_jax.evaluation import generate_and_loglikelihood as answering

    answers = ["the correct answer is answer2", "Answer 2!", "answer1", "none", "answer2", "2"]
    given = [Answer(text, cut=not place) for place, text in enumerate(answers)]
    monkeypatch.setattr(answering, "answer_all", lambda *arguments: given)
    capsys.readouterr()
    assert main(["evaluate", run.out, "--json", "--quiet"]) == 0
    (found,) = said(capsys)
    assert found["scores"] == pytest.approx(
        {"accuracy": 0.5, "without_answer": 1 / 3, "cut_answers": 1 / 6}
    )
    records = lines_of(found["files"][0])
    assert [record["correct"] for record in records] == [True, True, False, False, True, False]
    assert [record["generated"] for record in records] == answers
    assert [record["cut"] for record in records] == [True] + [False] * 5
    assert records[2]["prediction"] == "answer1" and records[3]["prediction"] is None


@pytest.mark.slow
def test_the_likelier_option_is_taken(run, capsys, monkeypatch):
    from goat_jax.evaluation import loglikelihood as likelihood

    def scored(self, pairs, *arguments, **options):
        """answer2 by the sum; answer1 by the mean, its text being longer."""
        second = [text.endswith("answer2") for _, text in pairs]
        sums, tokens = np.where(second, -4.0, -5.0), np.where(second, 2, 5)
        return likelihood.Likelihoods(sums, tokens, 0)

    monkeypatch.setattr(likelihood.Scorer, "__call__", scored)
    capsys.readouterr()
    assert main(["evaluate", run.out, "--json", "--quiet", "--scoring", "likelihood"]) == 0
    (found,) = said(capsys)
    assert found["scores"] == pytest.approx({"accuracy": 5 / 6, "accuracy_norm": 1 / 6})
    record = lines_of(found["files"][0])[0]
    assert (record["prediction"], record["prediction_norm"]) == ("answer2", "answer1")


@pytest.mark.slow
def test_accuracy_of_evaluation_rows_is_that_of_the_likelihoods(model, tmp_path, capsys):
    """As a metric of a run, which has it at every evaluation, and on command."""
    accuracies = []
    for cloze in (False, True):
        rows = [instruction(n % 7 + 1, n % 3 % 2 + 1) for n in range(11)]
        write(tmp_path / str(cloze) / "boolq" / "train.jsonl", rows)
        write(tmp_path / str(cloze) / "boolq" / "test.jsonl", rows)
        settings = {"cloze": cloze, "metrics": ("accuracy", "perplexity"), "packing": False}
        task = make_task("boolq", folder=str(tmp_path / str(cloze)), **settings)
        config = run_config(model, task, tmp_path / f"run{cloze}", steps=1, learning_rate=1e-2)
        after = fit(config, progress=False).after
        capsys.readouterr()
        arguments = ["--json", "--quiet", "--scoring", "likelihood"]
        assert main(["evaluate", config.out, *arguments]) == 0
        (found,) = said(capsys)
        assert after["accuracy"] == pytest.approx(found["scores"]["accuracy"])
        records = lines_of(found["files"][0])
        sums = [record["log_likelihoods"][record["answer"]] for record in records]
        options = [record["tokens"][int(record["answer"][-1]) - 1] for record in records]
        loss = -sum(sums) / sum(options)
        assert after["loss"] == pytest.approx(loss, rel=1e-4)
        assert after["perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)
        accuracies.append(after["accuracy"])
    assert len(set(accuracies)) == 2 and min(accuracies) > 0 and max(accuracies) < 1


@pytest.mark.slow
def test_the_loss_of_its_rows_can_still_be_had(run, capsys):
    capsys.readouterr()
    assert main(["evaluate", run.out, "--json", "--scoring", "loss"]) == 0
    assert said(capsys)[0]["perplexity"] > 1.0


@pytest.mark.slow
def test_a_table_for_people(run, tmp_path, capsys):
    capsys.readouterr()
    arguments = ["--scoring", "likelihood", "--limit", "2", "--out", str(tmp_path / "x")]
    assert main(["evaluate", run.out, *arguments]) == 0
    printed = capsys.readouterr()
    assert "boolq by likelihood (run, step 1)" in printed.out and "accuracy_norm" in printed.out
    assert "written: " in printed.out and "step 4/4 (100%)" in printed.err
    assert not list((tmp_path / "x").glob("*.writing"))


@pytest.mark.slow
def test_likelihoods_are_those_of_the_plain_logits(model):
    opened = load_eval_model(str(model))
    pairs = [("ab", "cd"), ("a longer prompt than that", "x"), ("q", "yes, it is so"), ("ab", "ce")]
    with jax.default_matmul_precision("highest"):
        found = opened.scorer()(pairs, batch_size=3, num_buckets=2)
        whole = merge_model(opened.graph, opened.trainable, opened.base)
        graph, state = nnx.split(whole)
        logits = jax.jit(lambda state, ids: nnx.merge(graph, state)(ids))
        for number, (prompt, text) in enumerate(pairs):
            pieces = [Piece(prompt, False), Piece(text, True)]
            ids, learnt = encode_pieces(opened.tokenizer, pieces, end=False)
            told = jax.nn.log_softmax(logits(state, jnp.asarray(ids)[None])[0])
            places = np.flatnonzero(learnt)
            expected = sum(float(told[place - 1, ids[place]]) for place in places)
            np.testing.assert_allclose(found.sums[number], expected, rtol=1e-5)
            assert found.tokens[number] == len(text)
            np.testing.assert_allclose(found.means[number], expected / len(text), rtol=1e-5)


@pytest.mark.slow
def test_one_compile_for_every_length(model):
    scorer = load_eval_model(str(model)).scorer()
    pairs = [("p" * (5 + 9 * n), "x" * (n % 3 + 1)) for n in range(20)]
    scorer(pairs, batch_size=4, num_buckets=2)
    assert compiled(scorer._step) == 2


@pytest.mark.slow
def test_texts_beyond_the_context_lose_their_beginning(model):
    scorer = load_eval_model(str(model)).scorer()
    found = scorer([("z" * 600, "ab"), ("z" * 510, "ab")], batch_size=2)
    assert found.cut == 1
    np.testing.assert_allclose(found.sums[0], found.sums[1], rtol=1e-6)
    with pytest.raises(UserError, match="after a token of the prompt"):
        scorer([("z", "a" * 512)])


def test_likelihoods_that_are_not_finite_are_no_answer(model):
    scorer = load_eval_model(str(model)).scorer()
    trainable, base = scorer._arrays
    broken = jax.tree.map(lambda x: x * np.nan if x.dtype == np.float32 else x, base)
    scorer._arrays = trainable, broken
    with pytest.raises(RunFailed, match="log-probability of 'b' is not finite"):
        scorer([("a", "b")])


@pytest.mark.slow
def test_batched_answers_are_those_alone_whatever_they_are_padded_to(model):
    generator = load_eval_model(str(model)).generator()
    prompts = ["one", "a much longer prompt " * 3, "b"]
    sampling = Sampling(max_new_tokens=5)
    together = answer_all(generator, prompts, sampling, batch_size=2)
    generator.multiple = 1
    assert together == [generator.complete([prompt], sampling)[0] for prompt in prompts]
    assert all(answer.cut for answer in together)
    ended = dataclasses.replace(sampling, stop=(together[0].text[:1],))
    assert generator.complete(["one"], ended) == [Answer("", cut=False)]


@pytest.mark.slow
def test_answers_need_few_compiles(model):
    generator = load_eval_model(str(model)).generator()
    prompts = ["x" * n for n in range(3, 60, 4)]
    answer_all(generator, prompts, Sampling(max_new_tokens=4), batch_size=4)
    assert compiled(generator._extend) == 2  # one for the prompts, one for a token


# Programs


def test_programs_are_not_run_unless_that_is_allowed(model, data, tmp_path, capsys):
    task = f"humaneval:questions={data / 'code'}"
    assert main(["evaluate", str(model), "--task", task, "--out", str(tmp_path / "x")]) == 2
    assert "allow this with --run-programs" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_pass_at_k_of_several_samples(model, data, tmp_path, capsys, monkeypatch):
    """Gives four samples per question, of which the second and third are right."""
    from goat_jax.evaluation import code as coding

    drawn = []

    def answers(generator, prompts, sampling, batch_size, progress, journal):
        drawn.append((sampling.seed, sampling.temperature))
        progress(len(prompts))
        right = sampling.seed in (8, 9)
        return [Answer("    return 1\n" if right else "    return 2\n", right)] * len(prompts)

    monkeypatch.setattr(coding, "answer_all", answers)
    task = f"humaneval:questions={data / 'code'}"
    arguments = ["--run-programs", "--samples", "4", "--k", "1", "2", "--seed", "7", "--json"]
    where = ["--out", str(tmp_path), "--quiet", "--workers", "2"]
    assert main(["evaluate", str(model), "--task", task, *arguments, *where]) == 0
    (found,) = said(capsys)
    assert found["scores"]["pass@1"] == pytest.approx(0.5)
    assert found["scores"]["pass@2"] == pytest.approx(5 / 6)
    assert found["scores"]["cut_answers"] == 0.5
    assert drawn == [(7, 0.8), (8, 0.8), (9, 0.8), (10, 0.8)]
    records = lines_of(found["files"][0])
    assert [r["sample"] for r in records if r["passed"]] == [1] * 3 + [2] * 3
    assert "AssertionError" in records[0]["result"]


# Bad requests


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "is a model, which has no task of its own: give one with --task"),
        (["--task", "boolqq"], "did you mean 'boolq'"),
        (
            ["--task", "gsm8k", "--scoring", "judge"],
            "cannot be scored by 'judge': use one of generate",
        ),
        (["--task", "rte", "--scoring", "generate"], "task rte has no questions"),
        (
            ["--task", "gsm8k", "--scoring", "loss"],
            "--scoring loss is only for a run on the task it was trained on",
        ),
        (["--task", "gsm8k", "--step", "3"], "is a model, not a run"),
        (["--task", "gsm8k", "--k", "5"], "pass@5 needs 5 samples or more"),
        (["--task", "gsm8k", "--judge-model", "x"], "--judge-model needs a judge"),
        (["--task", "gsm8k", "--judge", "x"], "is not an address"),
        (["--task", "gsm8k", "--judge", "http://x"], "give --judge-model"),
        (
            ["--task", "gsm8k", "--judge", "http://x", "--judge-timeout", "nan"],
            "--judge-timeout nan is not valid",
        ),
        (["--task", "gsm8k", "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--task", "gsm8k", "--limit", "0"], "--limit 0 is not valid"),
        (["--task", "gsm8k", "--batch-size", "0"], "--batch-size 0 is not valid"),
        (["--task", "gsm8k", "--seconds", "0"], "--seconds 0.0 is not valid"),
        (["--task", "gsm8k", "--dtype", "int4"], "dtype 'int4' is not one of"),
    ],
)
def test_bad_requests_get_one_line_and_leave_nothing(
    model, arguments, says, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where the records would go
    assert main(["evaluate", str(model), "--quiet", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_shared_out_over_eight_devices_answers_the_same(model):
    alone, shared_out = (load_eval_model(str(model), mesh=MeshConfig(tensor=n)) for n in (1, 8))
    cut = [leaf for leaf in jax.tree.leaves(shared_out.base) if not leaf.is_fully_replicated]
    assert cut
    pairs = [("ab", "cd"), ("a longer prompt than that", "x"), ("q", "yes, it is so")]
    found = [opened.scorer()(pairs, batch_size=3).sums for opened in (alone, shared_out)]
    np.testing.assert_allclose(*found, rtol=1e-5)
    sampling = Sampling(max_new_tokens=5)
    texts = ["one", "a much longer prompt", "b"]
    answers = [s.generator().answers(texts, sampling) for s in (alone, shared_out)]
    assert answers[0] == answers[1]


@pytest.mark.nightly
def test_a_run_is_evaluated_on_a_mesh(run, capsys):
    found = []
    for devices in ("1", "8"):
        capsys.readouterr()
        arguments = ["--json", "--scoring", "loss", "--tensor", devices]
        assert main(["evaluate", run.out, *arguments]) == 0
        found.append(said(capsys)[0]["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
