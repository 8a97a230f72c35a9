"""Builds a Hugging Face tokenizer from the metadata of a GGUF file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goat_jax.errors import UserError
from goat_jax.pretrained.gguf.file import GgufFile, read_gguf
from goat_jax.pretrained.quiet_transformers import import_transformers
from goat_jax.typing import Tokenizer

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that are matched in a text before splitting; only the first kind is special."""

SPECIAL_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CLIPPED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CLIPPED}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CLIPPED}|{WORDS}|\p{{N}}|{REST}"
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True)
class PreTokenizer:
    """Rules for splitting a text before pairs are merged.

    Attributes:
        patterns: regular expressions whose matches become separate pieces; each is applied to the
            pieces of the one before.
        whole_words: whether a piece that is a token is used without merges.
        composed: whether the text is first brought into Unicode's composed form (NFC).
        add_bos: whether a text starts with the bos token if the file does not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    composed: bool = False
    add_bos: bool = False


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer((GPT2,)),
    "default": PreTokenizer(DEFAULT),
    "smollm": PreTokenizer((r"\p{N}", GPT2)),
    "llama-bpe": PreTokenizer((LLAMA3,), whole_words=True, add_bos=True),
    "qwen2": PreTokenizer((QWEN2,), composed=True),
}
"""``tokenizer.ggml.pre`` -> llama.cpp's rules for it (`composed`: those of Hugging Face's file)."""


def gguf_tokenizer(path: str | Path) -> Tokenizer:
    """Builds the tokenizer of a GGUF file, as transformers' `PreTrainedTokenizerFast`.

    It has the vocabulary, merges, special tokens and chat template of the file, splits texts by the
    file's ``tokenizer.ggml.pre``, and takes texts up to the model's context length.

    Raises:
        UserError: a file that `read_gguf` rejects, a tokenizer that is not byte-level BPE, or an
            unknown pre-tokenizer.

    >>> gguf_tokenizer("nowhere.gguf")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere.gguf: no such file
    """
    file = read_gguf(path)
    pre = _pre_tokenizer(file)
    tokens: list[str] = file.need("tokenizer.ggml.tokens")
    named = {name: file.get(key) for name, key in SPECIAL_IDS.items()}
    bad = [number for number in named.values() if number is not None and number >= len(tokens)]
    if bad:
        raise UserError(f"{file.path}: special token {bad[0]} of {len(tokens)}: fetch it again")
    special = {name: tokens[number] for name, number in named.items() if number is not None}
    backend = _backend(file, pre, tokens)
    _add_tokens(backend, tokens, file.get("tokenizer.ggml.token_type", []))
    if file.get("tokenizer.ggml.add_bos_token", pre.add_bos) and "bos_token" in special:
        _start_with(backend, special["bos_token"])
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=file.need(f"{file.need('general.architecture')}.context_length"),
        chat_template=file.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def is_known(path: str | Path) -> bool:
    """True if the tokenizer of a GGUF file is of a kind that `gguf_tokenizer` builds."""
    file = read_gguf(path)
    known = file.get("tokenizer.ggml.pre") in PRE_TOKENIZERS
    return known and file.get("tokenizer.ggml.model") == "gpt2"


def _pre_tokenizer(file: GgufFile) -> PreTokenizer:
    model, pre = file.need("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise UserError(
            f"{file.path}: a tokenizer of kind {model!r}, but only 'gpt2' (byte-level BPE) can be "
            "read: put the model's Hugging Face tokenizer.json beside it"
        )
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{file.path}: unknown pre-tokenizer {pre!r} (known: {', '.join(PRE_TOKENIZERS)}):"
            " put the model's Hugging Face tokenizer.json beside it"
        )
    return PRE_TOKENIZERS[pre]


def _backend(file: GgufFile, pre: PreTokenizer, tokens: Sequence[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = [tuple(merge.split(" ", 1)) for merge in file.need("tokenizer.ggml.merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=pre.whole_words)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise UserError(f"{file.path}: its merges do not fit its tokens ({error})") from None
    backend = Tokenizer(model)
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
    backend.decoder = decoders.ByteLevel()
    if pre.composed:
        backend.normalizer = normalizers.NFC()
    return backend


def _add_tokens(backend: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Adds the tokens that are matched before splitting; they keep the vocabulary's ids."""
    from tokenizers import AddedToken

    pairs = list(zip(tokens, types, strict=False))
    for kind, add in ((CONTROL, backend.add_special_tokens), (USER_DEFINED, backend.add_tokens)):
        special = kind == CONTROL
        add([AddedToken(t, normalized=False, special=special) for t, of in pairs if of == kind])


def _start_with(backend: Any, bos: str) -> None:
    from tokenizers import processors

    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos}:1 $B:1",
                special_tokens=[(bos, backend.token_to_id(bos))],
            ),
        ]
    )
