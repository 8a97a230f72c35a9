"""Treatment of the keys of config.json: read, valid at fixed values only, or without effect.

A checkpoint that is accepted must compute what it computes in transformers. So every key that
transformers reads for one of our model types is in exactly one of three lists in the record of its
family, and a test walks the config classes and the code of the installed transformers to check that
none is missing. A key in no list is one that transformers does not read for this model type either,
so it is ignored here, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from goat_jax.errors import UserError
from goat_jax.nn.modules import ACTIVATIONS
from goat_jax.validation.checks import check_choice, check_number

Check = Callable[[str, Any], None]
"""(key, value) -> None; raises `UserError` for a value of the wrong type or range."""


def switch(key: str, value: object) -> None:
    """Raises `UserError` unless the value is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"config.json: {key} is {value!r}: it must be true or false")


def word(key: str, value: object) -> None:
    """Raises `UserError` unless the value is a string."""
    if not isinstance(value, str):
        raise UserError(f"config.json: {key} is {value!r}: it must be a string")


def table(key: str, value: object) -> None:
    """Raises `UserError` unless the value is an object."""
    if not isinstance(value, Mapping):
        raise UserError(f"config.json: {key} is {value!r}: it must be an object")


def number(**limits: Any) -> Check:
    """Returns the check of a number within the limits of `check_number`."""
    return lambda key, value: check_number(f"config.json: {key}", value, **limits)


def ids(key: str, value: object) -> None:
    """Raises `UserError` unless the value is a token id or a list of them."""
    for one in value if isinstance(value, list | tuple) else [value]:
        check_number(f"config.json: {key}", one, whole=True)


def activation(key: str, value: object) -> None:
    """Raises `UserError` unless the value names an activation that is computed here."""
    check_choice(f"config.json: {key}", value, ACTIVATIONS)


def anything(key: str, value: object) -> None:
    """Accepts any value; the code that reads the key checks it, with a more specific message."""


def one_of(*known: str) -> Check:
    """Returns the check of a word among the known ones."""
    return lambda key, value: check_choice(f"config.json: {key}", value, known)


RATE = number(at_least=0, below=1)
EPSILON = number(at_least=0)
COUNT = number(at_least=1, whole=True)
# The limit is above any real size: tuples of a value per layer are made before the network is.
SIZE = number(at_least=1, at_most=10**7, whole=True)


@dataclasses.dataclass(frozen=True)
class Keys:
    """Treatment of the keys of one model_type's config.json.

    Attributes:
        read: key -> the check of its value; the model follows the value.
        fixed: key -> the only values that are computed here, the usual one first. Others are
            rejected. null and a missing key count as valid.
        without_effect: keys that change no output of the models built here: they initialize weights
            that are then loaded, belong to other heads, or select what a call returns.
        parts: key -> the treatment of the keys of the object there.
        aliases: a key's other name -> the key; both may be present only if they agree.
    """

    read: Mapping[str, Check]
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    without_effect: frozenset[str] = frozenset()
    parts: Mapping[str, Keys] = dataclasses.field(default_factory=dict)
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def known(self) -> set[str]:
        """Returns all keys that are in one of the lists."""
        return {*self.read, *self.fixed, *self.without_effect, *self.parts, *self.aliases}


_COMMON_READ: dict[str, Check] = {
    "model_type": word,
    "architectures": anything,
    "id2label": table,
    "num_labels": COUNT,
}
_COMMON_FIXED: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "quantization_config": (None,),
    "pruned_heads": ({},),
}
_COMMON_WITHOUT = frozenset(
    {
        *("_attn_implementation", "_name_or_path", "transformers_version", "dtype", "torch_dtype"),
        *("label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict"),
        *("use_cache", "initializer_range", "initializer_factor", "chunk_size_feed_forward"),
        # Present in every config of transformers 4: generation settings, which are read elsewhere,
        # and settings of kinds of models that are not built here.
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
        *("is_decoder", "add_cross_attention", "cross_attention_hidden_size"),
        *("tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "prefix"),
        *("finetuning_task", "task_specific_params", "torchscript", "use_bfloat16"),
        *("tf_legacy_loss", "max_length", "min_length", "do_sample", "early_stopping"),
        *("num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p"),
        *("typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("output_scores", "return_dict_in_generate", "forced_bos_token_id", "suppress_tokens"),
        *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
        *("begin_suppress_tokens", "gradient_checkpointing"),
    }
)


def keys_of_family(
    read: Mapping[str, Check],
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
    without: tuple[str, ...] = (),
    parts: Mapping[str, Keys] | None = None,
) -> Keys:
    """Returns the treatment of a family's keys, given those besides the keys of all families."""
    common = {key: values for key, values in _COMMON_FIXED.items() if key not in read}
    read, fixed = {**_COMMON_READ, **read}, {**common, **(fixed or {})}
    others = (_COMMON_WITHOUT | frozenset(without)) - set(read) - set(fixed)
    return Keys(read, fixed, others, parts or {})


SIZES: dict[str, Check] = dict.fromkeys(
    ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"), SIZE
) | {"intermediate_size": SIZE, "hidden_act": activation}


def check_keys(keys: Keys, hf: Mapping[str, Any]) -> None:
    """Rejects a config.json with a setting that is not computed here.

    Raises:
        UserError: names the key, its value and a valid value.

    >>> check_keys(Keys({}, {"use_swiglu_ffn": (False,)}), {"use_swiglu_ffn": True})
    Traceback (most recent call last):
    goat_jax.errors.UserError: config.json: use_swiglu_ffn is True, and only False is computed \
here: use a checkpoint with that
    """
    for key, value in hf.items():
        if value is None:
            continue
        if key in keys.parts:
            table(key, value)
            check_keys(keys.parts[key], value)
        elif key in keys.read:
            keys.read[key](key, value)
        elif key in keys.fixed and value not in keys.fixed[key]:
            raise UserError(
                f"config.json: {key} is {_short(value)}, and only {keys.fixed[key][0]!r} is "
                "computed here: use a checkpoint with that"
            )
    for alias, key in keys.aliases.items():
        if hf.get(alias) not in (None, hf.get(key)):
            raise UserError(
                f"config.json: {alias} is {hf[alias]!r} and {key} is {hf.get(key)!r}, which are "
                f"two names of one size: give {key} alone"
            )
    _check_head_size(keys, hf)
    _check_code(hf)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_head_size(keys: Keys, hf: Mapping[str, Any]) -> None:
    """Rejects an unusual head size, except for decoders, which read the key."""
    sizes: list[Any] = [hf.get(k) for k in ("head_dim", "hidden_size", "num_attention_heads")]
    size, width, heads = sizes
    if size is None or "head_dim" in keys.read:
        return
    if any(type(each) is not int for each in sizes) or size * heads != width:
        raise UserError(
            f"config.json: head_dim is {size}, and only hidden_size / num_attention_heads is "
            "computed here: use a checkpoint with that"
        )


def _check_code(hf: Mapping[str, Any]) -> None:
    """Rejects a model with custom code, which is not the network that model_type names."""
    places = hf.get("auto_map")
    if isinstance(places, Mapping) and any(str(key).startswith("AutoModel") for key in places):
        raise UserError(
            "config.json: auto_map names code in the checkpoint, which is never run: use a "
            "checkpoint that transformers loads without trust_remote_code"
        )
