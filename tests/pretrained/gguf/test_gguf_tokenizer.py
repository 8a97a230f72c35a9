"""Tokenizers from the metadata of GGUF files: small ones written here, and the real SmolLM2's."""

import gguf
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.errors import UserError
from goat_jax.interop.merged import write_tokenizer
from goat_jax.pretrained.gguf.tokenizer import PRE_TOKENIZERS
from goat_jax.pretrained.packaged_models import smollm2_file
from kinds import expect

TEXTS = [
    "Hello  world 12345, it's 3.14!",
    "line\nline\n\n\tTab  \n  indented",
    "naïve café Ünïcode ñ 你好 — “quotes”",
    "e\N{COMBINING ACUTE ACCENT} combining",
    "def f(x):\n    return x**2  # ok\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "🙂👩\N{ZERO WIDTH JOINER}👧 emoji",
    "IT'S don't you'LL",
    "\r\n\r\nx",
    "a<|endoftext|>b",
    "   ",
    "",
]
MERGES = ["h e", "l l", "he ll", "Ġ w", "1 2", "hell o"]
CHAT = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"


def tokens():
    """Three special tokens, one that is found whole, every byte, what the merges give, a word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [merge.replace(" ", "") for merge in MERGES]
    return ["<|begin|>", "<|end|>", "<|user|>", "<think>", *alphabet, *merged, "wor"]


def write(path, pre="smollm", model="gpt2", extra=(), merges=MERGES):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    names = tokens()
    writer.add_token_list(names)
    writer.add_token_types([3, 3, 3, 4] + [1] * (len(names) - 4))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT)
    for add, *values in extra:
        getattr(writer, add)(*values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opened(path) -> PreTrainedTokenizerFast:
    return expect(PreTrainedTokenizerFast, load_tokenizer(path))


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_merges_special_tokens_and_settings(tmp_path):
    tokenizer = opened(write(tmp_path / "a.gguf"))
    assert pieces(tokenizer, "hello w12") == ["hello", "Ġw", "1", "2"]
    assert pieces(tokenizer, "he<|user|>ll<think>") == ["he", "<|user|>", "ll", "<think>"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")
    assert tokenizer.pad_token is None and tokenizer.model_max_length == 512
    assert len(tokenizer) == len(tokens())
    ids = tokenizer("<|user|>he<think>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "he<think>"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert chat == "<|user|>hello"


def test_a_merged_model_has_the_tokenizer_as_files(tmp_path):
    source = write(tmp_path / "a.gguf", extra=[("add_add_bos_token", True)])
    (tmp_path / "merged").mkdir()
    write_tokenizer(source, tmp_path / "merged")
    before, after = opened(source), opened(tmp_path / "merged")
    assert [after(text)["input_ids"] for text in TEXTS] == [before(t)["input_ids"] for t in TEXTS]
    assert (after.chat_template, after.eos_token) == (CHAT, "<|end|>")
    assert after.model_max_length == 512


def test_an_unknown_tokenizer_is_that_beside_the_file(tmp_path):
    known = opened(write(tmp_path / "a.gguf"))
    known.add_tokens(["beside"])
    known.save_pretrained(tmp_path)
    assert len(opened(write(tmp_path / "b.gguf", model="llama"))) == len(known)
    assert len(opened(tmp_path / "a.gguf")) == len(tokens())


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back(tmp_path, pre, text):
    tokenizer = opened(write(tmp_path / "a.gguf", pre, extra=[("add_add_bos_token", False)]))
    ids = tokenizer(text)["input_ids"]
    composed = PRE_TOKENIZERS[pre].composed and "\N{COMBINING ACUTE ACCENT}" in text
    assert tokenizer.decode(ids) == (
        text.replace("e\N{COMBINING ACUTE ACCENT}", "é") if composed else text
    )


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["a", " 1234", " it", "'s", " b", "'", "LL", " ", " c", "\n", "\n", "!?"]),
        (
            "smollm",
            ["a", " ", *"1234", " it", "'s", " b", "'", "LL", " ", " c", "\n", "\n", "!?"],
        ),
        ("llama-bpe", ["a", " ", "123", "4", " it", "'s", " b", "'LL", " ", " c", "\n\n", "!?"]),
        (
            "qwen2",
            ["a", " ", *"1234", " it", "'s", " b", "'LL", " ", " c", "\n\n", "!?"],
        ),
        (
            "default",
            ["a", " ", "123", "4", " it", "'", "s", " b", "'", "LL", " ", " c", "\n\n", "!?"],
        ),
    ],
)
def test_where_a_text_is_cut(pre, expected):
    text = "a 1234 it's b'LL  c\n\n!?"
    found = [text]
    for pattern in PRE_TOKENIZERS[pre].patterns:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        found = [piece for part in found for piece, _ in split.pre_tokenize_str(part)]
    assert found == expected


@pytest.mark.parametrize(
    ("pre", "theirs"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (
            "smollm",
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
        ),
    ],
)
@pytest.mark.parametrize("text", [*TEXTS, "½ a² ٣٤ Ⅷ x1y"])
def test_cuts_are_those_of_the_models_own_files(tmp_path, pre, theirs, text):
    """GPT-2's and SmolLM's tokenizer.json have these parts of the tokenizers library."""
    ours = opened(write(tmp_path / "a.gguf", pre)).backend_tokenizer
    reference = Tokenizer(models.BPE({}, []))
    reference.pre_tokenizer = theirs
    assert [p for p, _ in ours.pre_tokenizer.pre_tokenize_str(text)] == [
        p for p, _ in reference.pre_tokenizer.pre_tokenize_str(text)
    ]


def test_a_whole_word_needs_no_merges_in_llama_3(tmp_path):
    no_bos = [("add_add_bos_token", False)]
    tokenizer = opened(write(tmp_path / "a.gguf", "llama-bpe", extra=no_bos))
    assert pieces(tokenizer, "wor") == ["wor"]
    tokenizer = opened(write(tmp_path / "b.gguf", "qwen2"))
    assert pieces(tokenizer, "wor") == ["w", "o", "r"]


@pytest.mark.parametrize(
    ("pre", "told", "starts"),
    [
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("smollm", None, False),
        ("smollm", True, True),
    ],
)
def test_whether_a_text_starts_with_bos(tmp_path, pre, told, starts):
    extra = [] if told is None else [("add_add_bos_token", told)]
    tokenizer = opened(write(tmp_path / "a.gguf", pre, extra=extra))
    assert pieces(tokenizer, "he") == ["<|begin|>"] * starts + ["he"]
    assert tokenizer.num_special_tokens_to_add() == starts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, r"a tokenizer of kind 'llama', but only 'gpt2' .* tokenizer.json"),
        ({"pre": "viking"}, r"unknown pre-tokenizer 'viking' \(known: gpt-2, default, smollm"),
        ({"pre": None}, "unknown pre-tokenizer None"),
        ({"merges": ["h zz"]}, "its merges do not fit its tokens"),
        ({"extra": [("add_pad_token_id", 9999)]}, "special token 9999 of 267"),
    ],
)
def test_what_is_not_supported(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(write(tmp_path / "a.gguf", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.nightly  # in CI small files are compared with the parts of the models' own tokenizers
def test_the_real_smollm2_tokenizer_has_the_ids_of_transformers():
    transformers = pytest.importorskip("transformers")
    try:
        path = smollm2_file()
    except UserError as error:
        if "could not fetch" not in str(error):
            raise
        pytest.skip(str(error))
    ours = opened(path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    for text in TEXTS:
        ids = ours(text)["input_ids"]
        assert ids == theirs(text)["input_ids"] and ours.decode(ids) == text, text
    messages = [{"role": "user", "content": "How many is 3 + 4?"}]
    chats = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for tokenizer in (ours, theirs)
    ]
    assert chats[0] == chats[1] and "<|im_start|>assistant" in chats[0]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    # Other than transformers, which does not know this pre-tokenizer: as its own file cuts.
    assert ours.convert_ids_to_tokens(ours(" ½")["input_ids"]) == ["Ġ", "Â½"]
