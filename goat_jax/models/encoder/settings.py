"""Settings: what only some families of encoders have, read from a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from goat_jax.errors import UserError
from goat_jax.models.config_keys import COUNT, SIZE, activation, number, switch, table, word
from goat_jax.models.encoder.relative import Disentangled
from goat_jax.models.settings import Fields, Setting, check_layers, layer_types
from goat_jax.nn.rope import Rope


def size(key: str, field: str, default: int) -> Setting:
    """Returns the setting of a size that transformers has a default of."""
    return Setting({key: COUNT}, lambda hf, values: {field: hf.get(key) or default})


def head_activation(key: str) -> Setting:
    """Returns the setting of the activation in the head."""
    return Setting({key: activation}, lambda hf, values: {"head_activation": hf.get(key) or "gelu"})


PROJECTION_IF_NARROW = Setting(
    {}, lambda hf, values: {"projected": values["embedding_size"] != values["hidden_size"]}
)

LAYER_GROUPS = Setting(
    {"num_hidden_groups": SIZE},
    lambda hf, values: {"num_groups": hf.get("num_hidden_groups") or 1},
)


def equal_to_width(*keys: str) -> Setting:
    """Returns the setting of sizes that can only be the hidden size here."""

    def read(hf: Mapping[str, Any], values: Fields) -> Fields:
        return _only(hf, keys, values["hidden_size"], "hidden_size")

    return Setting(dict.fromkeys(keys, COUNT), read)


def _only(hf: Mapping[str, Any], keys: tuple[str, ...], usual: int, name: str) -> Fields:
    for key in keys:
        if hf.get(key) not in (None, usual):
            raise UserError(
                f"config.json: {key} is {hf[key]}, and only {name}, which is {usual}, is computed "
                "here: use a checkpoint with that"
            )
    return {}


HEAD_SIZE = Setting(
    {"attention_head_size": COUNT},
    lambda hf, values: _only(
        hf,
        ("attention_head_size",),
        values["hidden_size"] // values["num_heads"],
        "hidden_size / num_attention_heads",
    ),
)

POSITION_TABLE = Setting(
    {"position_biased_input": switch},
    lambda hf, values: {"position_table": hf.get("position_biased_input", True) is not False},
)


def _position_terms(key: str, value: Any) -> None:
    if any(term not in ("c2p", "p2c") for term in _terms(value)):
        raise UserError(f"config.json: {key} is {value!r}: it must be a list of c2p and p2c")


def _terms(value: Any) -> list[Any]:
    """Returns the terms of pos_att_type, which may be a list or one string with separators."""
    if isinstance(value, str):
        return [each.strip() for each in value.lower().split("|")]
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _disentangled(hf: Mapping[str, Any], values: Fields) -> Fields:
    terms = _terms(hf.get("pos_att_type"))
    scale = (values["hidden_size"] // values["num_heads"] * (1 + len(set(terms)))) ** -0.5
    if not hf.get("relative_attention"):
        return {"attention_scale": scale}
    if not terms:
        raise UserError(
            "config.json: relative_attention is True without pos_att_type, whose positions would "
            "have no effect: add pos_att_type, or use a checkpoint with it"
        )
    reach, buckets = hf.get("max_relative_positions") or 0, hf.get("position_buckets") or 0
    reach = reach if reach > 0 else values["max_position_embeddings"]
    if buckets > 0 and not 1 <= buckets // 2 < reach - 1:
        raise UserError(
            f"config.json: position_buckets is {buckets}: half of it must be at least 1 and below "
            f"the largest distance, {reach - 1}"
        )
    kind = str(hf.get("norm_rel_ebd") or "none").lower()
    return {
        "attention_scale": scale,
        "disentangled": Disentangled(
            "c2p" in terms,
            "p2c" in terms,
            bool(hf.get("share_att_key")),
            reach,
            buckets if buckets > 0 else None,
            "layer_norm" in [each.strip() for each in kind.split("|")],
        ),
    }


DISENTANGLED = Setting(
    {
        "relative_attention": switch,
        "pos_att_type": _position_terms,
        "share_att_key": switch,
        "max_relative_positions": number(whole=True),
        "position_buckets": number(whole=True),
        "norm_rel_ebd": word,
    },
    _disentangled,
)


def _odd(key: str, value: Any) -> None:
    number(at_least=0, whole=True)(key, value)
    if value and value % 2 == 0:
        raise UserError(f"config.json: {key} is {value}: it must be odd, or 0 for no convolution")


CONVOLUTION = Setting(
    {"conv_kernel_size": _odd, "conv_groups": COUNT, "conv_act": activation},
    lambda hf, values: {
        "convolution": hf.get("conv_kernel_size") or 0,
        "convolution_groups": hf.get("conv_groups") or 1,
        "convolution_activation": hf.get("conv_act") or "tanh",
    },
)


def _tables(key: str, value: Any) -> None:
    table(key, value)
    for name, section in value.items():
        if section is not None:
            table(f"{key}.{name}", section)


def _local_and_global(hf: Mapping[str, Any], values: Fields) -> Fields:
    """Reads a window and rotary positions of every layer, which are local or global."""
    layers, every = values["num_layers"], hf.get("global_attn_every_n_layers") or 3
    kinds = hf.get("layer_types")
    local = [bool(layer % every) for layer in range(layers)]
    if kinds is not None:
        check_layers("layer_types", kinds, layers)
        local = [kind == "sliding_attention" for kind in kinds]
    given, scaling = hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}
    read = partial(Rope.from_hf, context=values["max_position_embeddings"])
    ropes = {}
    for kind, old, theta in (
        ("full_attention", "global_rope_theta", 160000.0),
        ("sliding_attention", "local_rope_theta", 10000.0),
    ):
        section = {"rope_theta": hf.get(old)} | scaling | (given.get(kind) or {})
        ropes[kind] = read({"rope_parameters": section}, theta=theta)
    # A window counts the token itself: half of it to either side.
    window = (hf.get("local_attention") or 128) // 2 + 1
    return {
        "windows": tuple(window if near else None for near in local),
        "ropes": tuple(ropes["sliding_attention" if near else "full_attention"] for near in local),
    }


LOCAL_AND_GLOBAL = Setting(
    {
        "layer_types": layer_types,
        "global_attn_every_n_layers": COUNT,
        "local_attention": COUNT,
        "global_rope_theta": number(above=0),
        "local_rope_theta": number(above=0),
        "rope_parameters": _tables,
        "rope_scaling": table,
    },
    _local_and_global,
)
