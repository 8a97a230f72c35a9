"""Language-modelling rows: formats, what is learnt, packing, and every way a row can be wrong."""

import json

import numpy as np
import pytest

from goat_jax.data.pipeline.dataset import FILLER
from goat_jax.data.pipeline.encoding import Piece, encode_pieces
from goat_jax.data.pipeline.packing import Texts, load_texts, pack
from goat_jax.data.tasks.language import LanguageTask, load_pieces
from goat_jax.errors import UserError

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Makes each character a token; <s> starts a text and </s> ends it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: n for n, token in enumerate(["<s>", "</s>", *map(chr, range(32, 127))])}
    raw = Tokenizer(models.WordLevel(vocabulary | {"\n": len(vocabulary)}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture
def write(tmp_path):
    def write(*rows, **options) -> LanguageTask:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return LanguageTask("notes", str(path), str(path), **options)

    return write


def _learnt(task, tokenizer) -> str:
    """The text that is learnt, read back from the tokens."""
    texts = load_texts(task, "train", tokenizer, 200)
    ids, learnt = texts.input_ids[0], texts.loss_masks[0]
    return "".join(tokenizer.convert_ids_to_tokens(ids[learnt].tolist()))


def _whole(task, tokenizer) -> str:
    texts = load_texts(task, "train", tokenizer, 200)
    return "".join(tokenizer.convert_ids_to_tokens(texts.input_ids[0].tolist()))


CHAT = [
    {"role": "user", "content": "1?"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "2?"},
    {"role": "assistant", "content": "two"},
]
CASES = {
    "prompt_completion": ({"prompt": "2+2=", "completion": "4"}, {}, "<s>2+2=4</s>", "4</s>"),
    "text": ({"text": "a b"}, {}, "<s>a b</s>", "a b</s>"),
    "alpaca": (
        {"instruction": "Add.", "input": "2 2", "output": "4"},
        {},
        "<s>### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:\n4</s>",
        "4</s>",
    ),
    "template": (
        {"q": "2+2", "a": "4"},
        {"prompt": "Q {q} A", "completion": " {a}"},
        "<s>Q 2+2 A 4</s>",
        " 4</s>",
    ),
    "messages": (
        {"messages": CHAT},
        {},
        "<user>1?<end><assistant>one<end><user>2?<end><assistant>two<end>",  # as transformers does
        "one<end>two<end>",
    ),
}


@pytest.mark.parametrize("format", CASES)
def test_only_the_answer_is_learnt(format, tokenizer, write):
    row, options, whole, learnt = CASES[format]
    task = write(row, format=format, **options)
    assert _whole(task, tokenizer) == whole
    assert _learnt(task, tokenizer) == learnt
    everything = write(row, format=format, loss_on="all", **options)
    assert _learnt(everything, tokenizer) == whole.removeprefix("<s>")


def test_alpaca_without_input_has_no_input_part(tokenizer, write):
    task = write({"instruction": "Hi.", "input": "", "output": "Ho."}, format="alpaca")
    assert "Input" not in _whole(task, tokenizer)


def test_a_text_that_starts_itself_gets_no_second_start(tokenizer):
    ids, _ = encode_pieces(tokenizer, [Piece("<s>ab", True)], end=False)
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == ["<s>", "a", "b"]


@pytest.mark.parametrize(
    ("row", "options", "says"),
    [
        ({"prompt": "a"}, {}, "row 1: no text in column 'completion' .the row has prompt"),
        ({"text": 3}, {"format": "text"}, "row 1: column 'text' holds 3, not text"),
        ({"messages": []}, {"format": "messages"}, "row 1: no list in column 'messages'"),
        ({"messages": CHAT[:1]}, {"format": "messages"}, "no message of the assistant"),
        (
            {"a": "x"},
            {"format": "template", "prompt": "{q}", "completion": "{a}"},
            "row 1: template '{q}' does not fit",
        ),
    ],
)
def test_a_row_that_is_not_of_the_format_is_named(row, options, says, tokenizer, write):
    with pytest.raises(UserError, match=says):
        load_pieces(write(row, **options), "train", tokenizer)


def test_a_template_that_rewrites_the_past_is_refused(tokenizer, write):
    tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE
    try:
        with pytest.raises(UserError, match="rewrites earlier messages"):
            load_pieces(write({"messages": CHAT}, format="messages"), "train", tokenizer)
        tokenizer.chat_template = None
        with pytest.raises(UserError, match="has no chat template"):
            load_pieces(write({"messages": CHAT}, format="messages"), "train", tokenizer)
    finally:
        tokenizer.chat_template = TEMPLATE


def test_what_does_not_fit_is_cut_and_what_has_nothing_left_is_dropped(tokenizer, write):
    rows = [
        {"prompt": "abcdefgh", "completion": "x"},  # its completion is cut away
        {"prompt": "ab", "completion": "cdefgh"},  # loses its end
        {"prompt": "a", "completion": "b"},
    ]
    texts = load_texts(write(*rows), "train", tokenizer, 6)
    assert (len(texts.input_ids), texts.truncated, texts.dropped) == (2, 2, 1)
    assert max(texts.lengths) <= 6
    with pytest.raises(
        UserError, match="none of the 1 train texts has a token to train on within 6"
    ):
        load_texts(write(rows[0]), "train", tokenizer, 6)


def test_unknown_settings_are_refused():
    for options, says in [
        ({"format": "mesages"}, "unknown format 'mesages' .did you mean 'messages'"),
        ({"loss_on": "prompt"}, "loss_on 'prompt': use completion or all"),
        ({"format": "template"}, "a completion template is needed"),
        ({"completion": "{x}"}, "a completion template is needed"),
        ({"metrics": ("accuracy",)}, "unknown metric 'accuracy'"),
        ({"train_limit": 0}, "a limit of 0 rows"),
    ]:
        with pytest.raises(UserError, match=says):
            LanguageTask("notes", "a.jsonl", "b.jsonl", **options)


def test_packing_holds_every_text_once_and_wastes_little():
    lengths = np.random.default_rng(0).integers(5, 100, 500)
    bins = pack(lengths, 128)
    assert sorted(text for texts in bins for text in texts) == list(range(500))
    used = np.array([lengths[texts].sum() for texts in bins])
    assert used.max() <= 128
    assert len(bins) == -(-lengths.sum() // 128) or 1 - used.sum() / (128 * len(bins)) < 0.02


def test_a_packed_batch_tells_its_texts_apart():
    ids = [np.array([4, 5, 6]), np.array([7, 8])]
    learnt = [np.array([False, True, True]), np.array([False, True])]
    texts = Texts(ids, learnt, [[0, 1]], np.array([5]), pad_id=9)
    batch = texts.gather(np.array([0, FILLER]), 6)
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7, 8, 9]] * 2
    assert batch["segments"][0].tolist() == [1, 1, 1, 2, 2, 0]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 1, 0]
    assert batch["loss_mask"][0].tolist() == [0, 1, 1, 0, 1, 0]
    assert batch["weights"].tolist() == [1.0, 0.0]
