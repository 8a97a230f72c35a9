"""Configs of well-known encoder-decoders: those of the published config.json files."""

from __future__ import annotations

from typing import Any

_Config = dict[str, Any]


def _t5(width: int, layers: int, heads: int, inner: int, head_size: int = 64) -> _Config:
    return {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": width,
        "d_kv": head_size,
        "d_ff": inner,
        "num_layers": layers,
        "num_heads": heads,
    }


def _gated(*sizes: int) -> _Config:
    # Whether the output is the table is known of a file's tensors, and these files have both.
    apart = {"tie_word_embeddings": False, "tied_output": False}
    return _t5(*sizes) | {"feed_forward_proj": "gated-gelu", **apart}


_GATED = {
    "small": _gated(512, 8, 6, 1024),
    "base": _gated(768, 12, 12, 2048),
    "large": _gated(1024, 24, 16, 2816),
    "xl": _gated(2048, 24, 32, 5120),
    "xxl": _gated(4096, 24, 64, 10240),
}

KNOWN_SEQ2SEQ: dict[str, _Config] = {
    "t5-small": _t5(512, 6, 8, 2048),
    "t5-base": _t5(768, 12, 12, 3072),
    "t5-large": _t5(1024, 24, 16, 4096),
    "t5-3b": _t5(1024, 24, 32, 16384, 128),
    "t5-11b": _t5(1024, 24, 128, 65536, 128),
    **{f"t5-v1_1-{size}": config for size, config in _GATED.items()},
    **{f"flan-t5-{size}": config for size, config in _GATED.items()},
}
"""Short name of an encoder-decoder -> the sizes and settings of its config.json."""
