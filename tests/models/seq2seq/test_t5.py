"""T5 against torch: logits, generation with a cache, buckets of distances."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers.models.t5.modeling_t5 import T5Attention

from goat_jax.adapters.context import Context
from goat_jax.config.guess import config_for
from goat_jax.data.pipeline.packing import encode_texts
from goat_jax.data.tasks.language import LanguageTask, load_pieces
from goat_jax.errors import UserError
from goat_jax.evaluation.sampler import Generator, Sampling
from goat_jax.models.load import load_model, random_model
from goat_jax.models.seq2seq.model import Seq2Seq, distance_buckets
from goat_jax.training.losses import LANGUAGE
from goat_jax.training.task_types import before_answer
from kinds import expect
from random_torch import randomized
from tiers import each

TOLERANCE = 1e-5
SIZES = dict(vocab_size=60, d_model=32, d_kv=6, d_ff=48, num_layers=2, num_heads=4)
CASES = {
    "t5": {},
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gated silu, more decoder layers": {
        "feed_forward_proj": "gated-silu",
        "num_decoder_layers": 3,
        "layer_norm_epsilon": 0.1,
    },
    "few buckets": {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 7},
    "start and end tokens": {"decoder_start_token_id": 5, "eos_token_id": 3, "d_kv": 8},
}


def write(folder, settings) -> Any:
    """Saves a model, every number of it random; an untied output is a tensor of its own."""
    start = {"decoder_start_token_id": 0}
    config = transformers.T5Config(**{**SIZES, **start, **settings})

    def make() -> Any:
        model = transformers.T5ForConditionalGeneration(config)
        if settings.get("tie_word_embeddings") is False:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        return model

    model = randomized(make)
    model.save_pretrained(folder)
    return model


PROMPTS = [list(range(10, 22)), [7, 8, 9], [30, 31, 32, 33, 34]]
ANSWERS = [[40, 41, 42], [50, 51, 52, 53, 54, 55], [44]]


def rows(config):
    """The pairs as rows of ids and segments; the last two share a row."""
    end, start = config.before_answer
    pairs = [
        ([*prompt, end], [start, *answer]) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    ids, segments = np.zeros((2, 24), np.int32), np.zeros((2, 24), np.int32)
    places = []
    for number, (prompt, answer) in enumerate(pairs):
        row, part = min(number, 1), 2 * max(0, number - 1)
        at = int((segments[row] > 0).sum())
        stop = at + len(prompt) + len(answer)
        ids[row, at:stop] = prompt + answer
        segments[row, at:stop] = [part + 1] * len(prompt) + [part + 2] * len(answer)
        places.append((row, slice(at + len(prompt), stop)))
    return pairs, ids, segments, places


@pytest.mark.parametrize("case", each(CASES, ["flan"]))
def test_logits_are_torchs(case, tmp_path):
    theirs = write(tmp_path, CASES[case])
    loaded = load_model(tmp_path, key=jax.random.key(0))
    assert loaded.fresh == ()
    graph, state = nnx.split(loaded.model)
    pairs, ids, segments, places = rows(loaded.model.config)
    run = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(inputs[0], segments=inputs[1]))
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(run(state, ids, segments))
    for (prompt, answer), place in zip(pairs, places, strict=True):
        with torch.no_grad():
            inputs = {"input_ids": [prompt], "decoder_input_ids": [answer]}
            inputs = {name: torch.tensor(value) for name, value in inputs.items()}
            expected = theirs(**inputs).logits[0].numpy()
        largest = np.abs(expected).max()
        assert np.abs(logits[place] - expected).max() < TOLERANCE * largest


@pytest.mark.slow
def test_generation_with_a_cache_is_torchs(tmp_path):
    theirs = write(tmp_path, CASES["flan"])
    model = expect(Seq2Seq, load_model(tmp_path, key=jax.random.key(0)).model)
    end, start = model.config.before_answer
    longest, steps = max(map(len, PROMPTS)) + 2, 6
    ids, mask = np.zeros((2, len(PROMPTS), longest), np.int32)
    for row, prompt in enumerate(PROMPTS):
        ids[row, longest - len(prompt) - 2 :] = [*prompt, end, start]
        mask[row, longest - len(prompt) - 2 :] = 1
    graph, state = nnx.split(model)

    def step(state, ids, mask, cache):
        model = expect(Seq2Seq, nnx.merge(graph, state))
        hidden, cache = model.extend(ids, mask, cache)
        return model.logits(hidden[:, -1]), cache

    extend, cache, found = jax.jit(step), model.empty_cache(3, longest + steps), []
    tokens, shown = jnp.asarray(ids), jnp.asarray(mask)
    with jax.default_matmul_precision("highest"):
        for _ in range(steps):
            logits, cache = extend(state, tokens, shown, cache)
            found.append(np.asarray(logits))
            tokens = logits.argmax(-1)[:, None]
            shown = jnp.ones_like(tokens)
    for row, prompt in enumerate(PROMPTS):
        answer = [start, *(int(logits[row].argmax()) for logits in found[:-1])]
        with torch.no_grad():
            expected = theirs(
                input_ids=torch.tensor([[*prompt, end]]), decoder_input_ids=torch.tensor([answer])
            ).logits[0]
        ours = np.stack([logits[row] for logits in found])
        assert np.abs(ours - expected.numpy()).max() < TOLERANCE * float(expected.abs().max())


@pytest.fixture
def tokenizer(tmp_path):
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(3, 60))]
    vocabulary = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(WordLevel(vocabulary, "<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    made.save_pretrained(tmp_path)
    return made


ROWS = [("w5 w6 w7", "w8 w9"), ("w20", "w21 w22 w23"), ("w30 w31 w32 w33", "w34")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "packing", [pytest.param(False, marks=pytest.mark.nightly), True], ids=["rows", "packed"]
)
def test_the_loss_of_texts_is_torchs(packing, tmp_path, tokenizer):
    theirs = write(tmp_path, CASES["flan"])
    lines = [json.dumps({"prompt": p + " ", "completion": c}) for p, c in ROWS]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(lines))
    task = LanguageTask("answers", str(rows), str(rows), packing=packing)
    pieces = load_pieces(task, "train", tokenizer)
    between = before_answer(str(tmp_path))
    assert between == (1, 0)
    texts = encode_texts(task, "train", pieces, tokenizer, 16, between)
    batch = texts.gather(np.arange(len(texts)), 16)
    assert len(texts) == (2 if packing else 3)
    graph, state = nnx.split(load_model(tmp_path, key=jax.random.key(0)).model)
    with jax.default_matmul_precision("highest"):
        loss, _, _ = jax.jit(
            lambda state, batch: LANGUAGE.loss(nnx.merge(graph, state), batch, Context())
        )(state, batch)
    expected = 0.0
    for prompt, completion in ROWS:
        labels = torch.tensor([tokenizer(completion)["input_ids"]])
        with torch.no_grad():
            found = theirs(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]]), labels=labels)
        expected += float(found.loss) * labels.numel()
    assert abs(float(loss) - expected) < 1e-5 * expected
    model = expect(Seq2Seq, load_model(tmp_path, key=jax.random.key(0)).model)
    generator = Generator(model, tokenizer)
    answers = generator.answers([prompt for prompt, _ in ROWS], Sampling(max_new_tokens=6))
    for (prompt, _), answer in zip(ROWS, answers, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        made = theirs.generate(ids, max_new_tokens=6, do_sample=False)[0]
        assert answer == tokenizer.decode(made, skip_special_tokens=True)  # no space before it
    (answer,) = generator.answers([ROWS[0][0]], Sampling(max_new_tokens=6, beams=3))
    ids = torch.tensor([tokenizer(ROWS[0][0])["input_ids"]])
    made = theirs.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False)[0]
    assert answer == tokenizer.decode(made, skip_special_tokens=True)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 7), (20, 37)])
def test_buckets_are_torchs(buckets, reach, both):
    distances = torch.arange(-2999, 3000)
    expected = T5Attention._relative_position_bucket(distances, both, buckets, reach)
    np.testing.assert_array_equal(distance_buckets(3000, buckets, reach, both), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "moe-relu"}, "feed_forward_proj is 'moe-relu'"),
        ({"relative_attention_max_distance": 16}, "a distance above their half"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is False"),
        ({"d_kv": 0}, "d_kv 0 is not valid"),
        ({"feed_forward_proj": "gated-sigmoid"}, "feed_forward_proj is 'gated-sigmoid'"),
        ({"feed_forward_proj": "softplus"}, "feed_forward_proj is 'softplus'"),
    ],
)
def test_settings_that_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        random_model({"model_type": "t5", **SIZES, **change}, key=jax.random.key(0))


def test_labels_are_refused_with_the_way_to_make_them_answers(tmp_path, tokenizer):
    hf = {"model_type": "t5", **SIZES}
    (tmp_path / "config.json").write_text(json.dumps(hf))
    rows = tmp_path / "rows.jsonl"
    line = json.dumps({"text": "w5 w6", "label": "w7"})
    rows.write_text(f"{line}\n" * 20 + f"{line.replace('w7', 'w8')}\n" * 20)
    message = "T5 has no head 'sequence', only conditional: make the labels answers"
    with pytest.raises(UserError, match=message):
        config_for(str(tmp_path), rows)
    with pytest.raises(UserError, match=message):
        random_model(hf, key=jax.random.key(0), head="sequence", num_labels=2)
    answers = {"format": "template", "prompt": "{text} ", "completion": "{label}"}
    fields = {f"task.{name}": value for name, value in answers.items()}
    config = config_for(str(tmp_path), rows, **fields)
    assert isinstance(config.task, LanguageTask)
    assert config.adapter.modules_to_save == ()
