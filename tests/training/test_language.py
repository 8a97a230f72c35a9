"""Language modelling from files to text: packing, training, generation, and the command line."""

import dataclasses
import gc
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import goat_jax
from goat_jax.adapters.context import EVAL
from goat_jax.cli.main import main
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.pipeline.packing import load_texts
from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.data.tasks.registry import language_files
from goat_jax.errors import UserError
from goat_jax.evaluation.sampler import Generator, Sampling, _settled, choose, unrolled
from goat_jax.models.decoder.model import Decoder, tiny_decoder_config
from goat_jax.models.load import load_model
from goat_jax.models.torch_layout import torch_tensors
from goat_jax.nn.attention import AttentionPlan
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.training.losses import LANGUAGE, language_loss
from goat_jax.training.trainer import fit
from kinds import expect
from tiny_language import COLOURS, write_model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    write_model(root / "model")
    rng = np.random.default_rng(0)
    for name, count in [("train", 60), ("test", 10)]:
        things = rng.choice(list(COLOURS), count)
        fillers = [" ".join(["thing"] * n) for n in rng.integers(0, 4, count)]
        rows = [
            {"prompt": f"{filler} what is the {thing} ?", "completion": COLOURS[thing]}
            for thing, filler in zip(things, fillers, strict=True)
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def config(files):
    return RunConfig(
        model=ModelConfig(str(files / "model")),
        task=language_files(str(files / "train.jsonl"), str(files / "test.jsonl")),
        adapter=AdapterConfig(
            "goat", ("v_proj", "up_proj", "down_proj"), (), total_rank=8, dropout=0.0
        ),
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=3),
        train=TrainConfig(
            steps=30, batch_size=4, max_length=32, eval_batch_size=4, eval_every=15, num_buckets=1
        ),
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    config = dataclasses.replace(config, out=str(tmp_path_factory.mktemp("run") / "run"))
    return config, fit(config, progress=False)


def _sums(model, batch):
    graph, state = nnx.split(model)

    @jax.jit
    def sums(state, batch):
        loss, extra, rows = LANGUAGE.loss(nnx.merge(graph, state), batch, EVAL)
        return loss, extra["token_accuracy"], LANGUAGE.count(batch), rows

    *numbers, rows = sums(state, {name: jnp.asarray(value) for name, value in batch.items()})
    return *map(float, numbers), rows


def _logits(model):
    """(ids, mask) -> logits, compiled."""
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, *args: nnx.merge(graph, state)(*args))
    return lambda *args: np.asarray(compiled(state, *args))


@pytest.mark.slow
def test_packed_texts_have_the_loss_of_texts_alone(files, config):
    model = load_decoder(files / "model")
    tokenizer = load_tokenizer(files / "model")
    packed = load_texts(config.task, "evaluation", tokenizer, 32)
    alone = load_texts(dataclasses.replace(config.task, packing=False), "evaluation", tokenizer, 32)
    assert len(packed) < len(alone) == 10
    with jax.default_matmul_precision("highest"):
        together = _sums(model, packed.gather(np.arange(len(packed)), 32))
        apart = _sums(model, alone.gather(np.arange(10), 32))
    np.testing.assert_allclose(together[:3], apart[:3], rtol=1e-5)
    assert apart[2] == 20  # a colour and the end of text each


def test_the_loss_is_that_of_the_plain_logits(files, config):
    model = load_decoder(files / "model")
    rows = load_texts(
        dataclasses.replace(config.task, packing=False),
        "evaluation",
        load_tokenizer(files / "model"),
        32,
    )
    batch = rows.gather(np.array([0, 1, 2, -1]), 32)
    assert "segments" not in batch and not batch["attention_mask"].all()
    loss, _, count, by_row = _sums(model, batch)
    with jax.default_matmul_precision("highest"):
        logits = _logits(model)(batch["input_ids"], batch["attention_mask"])
    told = np.asarray(jax.nn.log_softmax(logits))
    expected = [
        -told[row, t - 1, batch["input_ids"][row, t]]
        for row in range(3)
        for t in range(1, 32)
        if batch["loss_mask"][row, t]
    ]
    assert count == len(expected) == 6
    np.testing.assert_allclose(loss, np.sum(expected), rtol=1e-5)
    assert by_row.shape == (4,) and float(by_row[3]) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["xla", pytest.param("blocks", marks=pytest.mark.nightly)])
def test_rows_of_one_text_need_neither_segments_nor_a_mask(files, config, way):
    """Causal attention never sees the padding on the right: loss and gradients stay the same."""
    model = load_decoder(files / "model")
    model.attention = AttentionPlan(way)
    task = dataclasses.replace(config.task, packing=False)
    rows = load_texts(task, "evaluation", load_tokenizer(files / "model"), 32)
    graph, state = nnx.split(model)

    @jax.jit
    def loss_and_gradients(state, batch):
        return jax.value_and_grad(
            lambda state: language_loss(nnx.merge(graph, state), batch, EVAL)[0]
        )(state)

    with jax.default_matmul_precision("highest"):
        bare, apart = (
            loss_and_gradients(state, each.gather(np.arange(4), 32))
            for each in (rows, dataclasses.replace(rows, packed=True))
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max()),
        bare,
        apart,
    )


@pytest.mark.slow
def test_a_run_learns_and_its_best_checkpoint_answers(finished, files, capsys):
    config, summary = finished
    assert summary.after["perplexity"] < 0.5 * summary.before["perplexity"]
    assert summary.best_score == min(summary.after["perplexity"], summary.best_score)
    assert summary.after["token_accuracy"] > 0.9
    assert "60 training rows" not in summary.notes[0]  # packed
    arguments = [arg for thing in COLOURS for arg in ("--prompt", f"what is the {thing} ?")]
    capsys.readouterr()
    assert main(["generate", config.out, *arguments, "--json", "--max-new-tokens", "5"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    answers = [line["answer"].strip() for line in lines]
    right = sum(a == colour for a, colour in zip(answers, COLOURS.values(), strict=True))
    assert right >= 4, answers


@pytest.mark.slow
def test_a_loaded_run_answers_rows_without_completions(finished):
    config, _ = finished
    run = goat_jax.load(config.out)
    texts = [f"what is the {thing} ?" for thing in ("sky", "thing thing grass", "blood")]
    found = run.predict([{"prompt": texts[0]}, *texts[1:]], max_new_tokens=5, batch_size=2)
    assert found.answers.tolist() == ["blue", "green", "red"]
    assert found.results() == [["blue"], ["green"], ["red"]]
    assert run.generate(texts[0], max_new_tokens=5).strip() == "blue"
    assert [one.strip() for one in run.generate(texts[1:], max_new_tokens=5)] == ["green", "red"]


@pytest.mark.slow
def test_one_prompt_is_streamed(finished, capsys):
    config, _ = finished
    capsys.readouterr()
    assert main(["generate", config.out, "--prompt", "what is the sky ?"]) == 0
    assert capsys.readouterr().out.strip() == "blue"


def load_decoder(folder):
    return expect(Decoder, load_model(folder, key=jax.random.key(0)).model)


@pytest.mark.slow
def test_prompts_of_different_lengths_are_answered_as_if_alone(files):
    model = load_decoder(files / "model")
    generator = Generator(model, load_tokenizer(files / "model"))
    prompts = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12]]
    sampling = Sampling(max_new_tokens=6)
    together = np.stack(list(generator.tokens(prompts, sampling)), axis=1)
    for row, prompt in enumerate(prompts):
        alone = np.stack(list(generator.tokens([prompt], sampling)), axis=1)
        np.testing.assert_array_equal(together[row, : alone.shape[1]], alone[0])


def test_greedy_is_the_argmax_of_the_whole_forward(files):
    model = load_decoder(files / "model")
    generator = Generator(model, load_tokenizer(files / "model"))
    logits, ids, mask = _logits(model), np.zeros((1, 12), np.int32), np.ones((1, 12), np.int32)
    ids[0, :3] = [3, 9, 5]
    for place, (token,) in enumerate(generator.tokens([[3, 9, 5]], Sampling(max_new_tokens=8))):
        assert token == logits(ids, mask)[0, 2 + place].argmax()  # a causal model: no look ahead
        ids[0, 3 + place] = token


@pytest.mark.slow
def test_layers_taken_apart_compute_the_same_and_the_stack_stays(files):
    model = load_decoder(files / "model")
    apart = unrolled(model)
    assert model.layers.sizes == (2,) and apart.layers.sizes == (1, 1)
    ids, mask = np.array([[3, 9, 5, 4]], np.int32), np.ones((1, 4), np.int32)
    both = (_logits(each)(ids, mask) for each in (apart, model))
    np.testing.assert_allclose(*both, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_generator_of_layers_apart_lets_the_stack_go(files):
    model = load_decoder(files / "model")
    stacked = weakref.ref(model)
    generator = Generator(model, load_tokenizer(files / "model"), apart=True)
    del model
    gc.collect()
    assert stacked() is None and len(list(generator.tokens([[3, 9]], Sampling(max_new_tokens=2))))


@pytest.mark.slow
def test_top_p_keeps_the_likely_tokens_and_only_them():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 300)
    drawn = jax.vmap(lambda key: choose(logits, key, 1.0, 0.7)[0])(keys)
    counts = np.bincount(np.asarray(drawn), minlength=4)
    assert counts[2:].sum() == 0 and (counts[:2] > 70).all()
    cold = jax.vmap(lambda key: choose(logits, key, 0.05, 1.0)[0])(keys)
    assert (np.asarray(cold) == 0).all()


@pytest.mark.slow
def test_the_same_seed_draws_the_same_and_another_does_not(files):
    model = load_decoder(files / "model")
    generator = Generator(model, load_tokenizer(files / "model"))

    def draw(seed):
        sampling = Sampling(temperature=1.0, max_new_tokens=12, seed=seed)
        return [int(t[0]) for t in generator.tokens([[5]], sampling)]

    assert draw(0) == draw(0)
    assert len({tuple(draw(seed)) for seed in range(4)}) > 1


@pytest.mark.slow
def test_a_stop_text_ends_the_answer_and_is_not_shown(finished, capsys):
    config, _ = finished
    capsys.readouterr()
    assert main(["generate", config.out, "--prompt", "what is the sky ?", "--stop", "ue"]) == 0
    assert capsys.readouterr().out.strip() == "bl"


def test_what_could_become_a_stop_text_is_held_back():
    assert _settled("green ##", ("###",)) == "green "
    assert _settled("green \N{REPLACEMENT CHARACTER}", ()) == "green "
    assert _settled("green #.", ("###",)) == "green #."


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", "what " * 60, "--max-new-tokens", "9"], "may need 69 tokens, more than the"),
        ([], "no prompt is given"),
        (["--prompt", "what", "--top-p", "0"], "--top-p 0.0 is not valid: give a number above 0"),
        (["--prompt", "what", "--chat"], "this tokenizer has no chat template"),
        (["--prompt", "what", "--step", "3"], "is a model, not a run"),
    ],
)
def test_bad_requests_get_one_line(files, arguments, says, capsys):
    assert main(["generate", str(files / "model"), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_task_for_another_kind_of_model_is_refused(config, tiny):
    wrong = dataclasses.replace(config, model=ModelConfig(str(tiny / "model")))
    with pytest.raises(UserError, match=r"is a text encoder, but task .* needs a language model"):
        fit(wrong, progress=False)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(files, config, tmp_path):
    folder = write_model(tmp_path / "model")
    small = Decoder(tiny_decoder_config(vocab_size=9, hidden_size=32), rngs=nnx.Rngs(0))
    save_file(torch_tensors(small), folder / "model.safetensors")
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(hf | {"vocab_size": 9}))
    wrong = dataclasses.replace(config, model=ModelConfig(str(folder)), out=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"gives token 1[0-9], but the model has 9: take both"):
        fit(wrong, progress=False)
    assert not (tmp_path / "run").exists()
