"""Translates a GGUF file's settings to a Hugging Face config.json."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.pretrained.gguf.architectures import ARCHITECTURES, WINDOW, GgufArchitecture
from goat_jax.pretrained.gguf.file import GgufFile

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor that encodes Llama 3.1's frequency scaling, one divisor per frequency."""

LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
"""The tensors of Phi-3's divisors, beyond its original context and within."""

LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Scaling settings of every published Llama 3; a file holds only the divisors, not these."""

YARN_OPTIONS = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}


def architecture_of(file: GgufFile) -> GgufArchitecture:
    """Returns the counterpart of a file's architecture, with its window and its experts.

    Raises:
        UserError: an unknown architecture, or one that has no window or no experts here.
    """
    name = file.need("general.architecture")
    if name not in ARCHITECTURES:
        raise UserError(
            f"{file.path} has architecture {name!r}: give a model of one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    row: GgufArchitecture | None = ARCHITECTURES[name]
    if file.get(f"{name}.expert_count") and "num_experts" not in row.keys:
        row = row.experts
        if row is None:
            raise UserError(f"{file.path} is a mixture of experts: give a dense model")
    if (window := file.get(f"{name}.{WINDOW}")) and WINDOW not in row.keys.values():
        row = row.windowed
        if row is None:
            raise UserError(f"{file.path}: {name} with a sliding window ({window}) is unsupported")
    return row


def hf_config(file: GgufFile) -> dict[str, Any]:
    """Builds the content of a config.json from the metadata of a GGUF file.

    Raises:
        UserError: an unknown architecture, a missing key, or a form of attention or rope scaling
            that a config.json of that model type cannot express.
    """
    row, name = architecture_of(file), file.need("general.architecture")
    heads, head_dim, rotated = _heads(file, name, row.partial)
    norm_eps, stored_eps = row.norm_eps
    config = {
        "model_type": row.model_type,
        "hidden_size": file.need(f"{name}.embedding_length"),
        "intermediate_size": file.need(f"{name}.feed_forward_length"),
        "num_hidden_layers": file.need(f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": file.need(f"{name}.context_length"),
        norm_eps: _short(file.need(f"{name}.{stored_eps}")),
        "rope_theta": _short(file.get(f"{name}.rope.freq_base", 10000.0)),
        "vocab_size": _vocabulary(file),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        row.bias: "blk.0.attn_q.bias" in file.tensors,
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_tokens(file),
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id"),
    }
    if scaling := _rope_scaling(file, name, config):
        config["rope_scaling"] = scaling
    if rotated != head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
    found = {key: file.get(f"{name}.{stored}") for key, stored in row.keys.items()}
    config |= {key: _plain(value) for key, value in found.items() if value}
    config |= row.fixed
    return config | _layer_types(file, name) | row.more(config, file.tensors)


def _layer_types(file: GgufFile, name: str) -> dict[str, Any]:
    """Returns the layers with a window as config.json has them, if a file names them."""
    pattern = file.get(f"{name}.{WINDOW}_pattern")
    if pattern is None:
        return {}
    if isinstance(pattern, int):
        return {"sliding_window_pattern": pattern}
    return {"layer_types": [f"{'sliding' if slides else 'full'}_attention" for slides in pattern]}


def _plain(value: Any) -> Any:
    return _short(value) if isinstance(value, float) else value


def _end_tokens(file: GgufFile) -> int | list[int] | None:
    """Returns the tokens that end a text, a turn, or a message."""
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    numbers = list(dict.fromkeys(number for key in keys if (number := file.get(key)) is not None))
    return numbers if len(numbers) > 1 else next(iter(numbers), None)


def _short(value: float) -> float:
    """Returns a float32's shortest decimal number: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _number(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.need(key) if default is None else file.get(key, default)
    if not isinstance(value, int):
        raise UserError(f"{file.path}: {key} differs by layer, which is unsupported")
    return value


def _heads(file: GgufFile, name: str, partial: bool) -> tuple[int, int, int]:
    """Returns the number of heads, their size, and how many dimensions of it are rotated."""
    heads = _number(file, f"{name}.attention.head_count")
    size = (
        file.get(f"{name}.attention.key_length") or file.need(f"{name}.embedding_length") // heads
    )
    rotated = file.get(f"{name}.rope.dimension_count", size)
    values = file.get(f"{name}.attention.value_length", size)
    if (rotated != size and not partial) or values != size:
        raise UserError(
            f"{file.path}: heads of {size} with {rotated} rotated dimensions and values of"
            f" {values}: only equal sizes are supported"
        )
    return heads, size, rotated


def _vocabulary(file: GgufFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{file.path} has no token_embd.weight: give a file with all the weights")
    return int(file.tensors["token_embd.weight"].shape[-1])


def _rope_scaling(file: GgufFile, name: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """Returns ``rope_scaling`` of a config.json, or None."""
    start = f"{name}.rope.scaling."
    settings = {
        key.removeprefix(start): file.get(key) for key in file.fields if key.startswith(start)
    }
    kind = settings.pop("type", "none")
    if ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, config)
    if LONG_FACTORS in file.tensors:
        return _longrope(file, settings)
    settings.pop("finetuned", None)  # says how the model was made, not how it computes
    factor = settings.pop("factor", file.get(f"{name}.rope.scale_linear"))
    if kind == "none" and factor in (None, 0.0, 1.0):
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _short(factor or 1.0)}
    length = settings.pop("original_context_length", None)
    if kind == "yarn":
        if length:
            scaling["original_max_position_embeddings"] = length
        scaling |= {new: settings.pop(old) for old, new in YARN_OPTIONS.items() if old in settings}
    # Files from before 2024 have a factor alone, which means linear.
    if kind == "none":
        scaling["rope_type"] = "linear"
    if settings or scaling["rope_type"] not in ("linear", "yarn"):
        shown = ", ".join([kind, *settings])
        raise UserError(f"{file.path}: rope scaling {shown}: only linear and yarn are supported")
    return scaling


def _longrope(file: GgufFile, settings: dict[str, Any]) -> dict[str, Any]:
    factor = settings.get("attn_factor")
    return {
        "rope_type": "longrope",
        "long_factor": [_short(each) for each in file.tensors[LONG_FACTORS].data],
        "short_factor": [_short(each) for each in file.tensors[SHORT_FACTORS].data],
        **({} if factor is None else {"attention_factor": _short(factor)}),
    }


def _llama3_scaling(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that yield the file's divisors; the largest divisor is the factor."""
    divisors = np.asarray(file.tensors[ROPE_FACTORS].data, np.float32)
    scaling = {"rope_type": "llama3", "factor": _short(divisors.max()), **LLAMA3_ROPE}
    expected = llama3_divisors(scaling, config["rope_theta"], config["head_dim"])
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise UserError(
            f"{file.path}: {ROPE_FACTORS} is not Llama 3's scaling: use the model's safetensors"
        )
    return scaling


def llama3_divisors(scaling: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """Computes Llama 3.1's divisors of the rotary frequencies, (head_dim / 2,) float32.

    Long waves are slowed by the factor, short ones kept, those between interpolated (Llama Team,
    "The Llama 3 Herd of Models", 2024, and the config.json files that came with it).

    >>> divisors = llama3_divisors({"factor": 8.0, **LLAMA3_ROPE}, 500000.0, 128)
    >>> float(divisors[0]), float(divisors[-1])
    (1.0, 8.0)
    """
    frequency = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (keep + (1 - keep) / scaling["factor"])).astype(np.float32)
