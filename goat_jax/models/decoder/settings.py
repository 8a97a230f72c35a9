"""Settings: what only some families of decoders have, read from a config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from goat_jax.errors import UserError
from goat_jax.models.config_keys import COUNT, Check, anything, number, switch, table
from goat_jax.models.decoder.mixture import MixtureConfig
from goat_jax.models.settings import Fields, Setting, always, check_layers, flag, layer_types
from goat_jax.nn.rope import Rope
from goat_jax.validation.checks import check_number


def if_given(key: str, field: str, check: Check, convert: Callable[[Any], Any] = float) -> Setting:
    """Returns the setting of a field that keeps its default if config.json has no such key."""

    def read(hf: Mapping[str, Any], values: Fields) -> Fields:
        return {} if hf.get(key) is None else {field: convert(hf[key])}

    return Setting({key: check}, read)


def cap(key: str, field: str, default: float | None) -> Setting:
    """Returns the setting of a soft cap; null means none."""
    return Setting({key: number(above=0)}, lambda hf, values: {field: hf.get(key, default)})


def _by_type(hf: Mapping[str, Any], window: int | None, sliding: list[bool]) -> Fields:
    kinds = hf.get("layer_types")
    if kinds is not None:
        check_layers("layer_types", kinds, len(sliding))
        sliding = [kind == "sliding_attention" for kind in kinds]
        # transformers fails, or has a window in some ways to compute attention only.
        if window is None and any(sliding):
            raise UserError(
                "config.json: layer_types has 'sliding_attention', but there is no window: give "
                "sliding_window (and use_sliding_window true, if it is false), or layer_types of "
                "'full_attention' alone"
            )
    return {"windows": tuple(window if slides else None for slides in sliding)}


def _windows_from_a_layer_on(hf: Mapping[str, Any], values: Fields) -> Fields:
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    first = 28 if hf.get("max_window_layers") is None else hf["max_window_layers"]
    return _by_type(hf, window, [layer >= first for layer in range(values["num_layers"])])


def windows_but_every(pattern: int, default: int = 4096, *, key: str | None = None) -> Setting:
    """Returns the setting of a window in all layers but every `pattern`-th.

    Args:
        pattern: the usual distance of layers without a window.
        default: the window if config.json has none.
        key: the key of another distance; None for families that transformers reads none for.
    """

    def read(hf: Mapping[str, Any], values: Fields) -> Fields:
        every = (key and hf.get(key)) or pattern
        sliding = [bool((layer + 1) % every) for layer in range(values["num_layers"])]
        return _by_type(hf, hf.get("sliding_window", default), sliding)

    keys: dict[str, Check] = {"sliding_window": COUNT, "layer_types": layer_types}
    return Setting(keys | ({key: COUNT} if key else {}), read)


def window(default: int | None) -> Setting:
    """Returns the setting of the same window in every layer."""
    return Setting(
        {"sliding_window": COUNT},
        lambda hf, values: {"windows": (hf.get("sliding_window", default),) * values["num_layers"]},
    )


WINDOW_IF_USED = Setting(
    {"use_sliding_window": switch, "sliding_window": COUNT},
    lambda hf, values: {
        "windows": (
            (hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None,)
            * values["num_layers"]
        )
    },
)

WINDOWS_FROM_A_LAYER_ON = Setting(
    {
        "use_sliding_window": switch,
        "sliding_window": COUNT,
        "max_window_layers": number(at_least=0, whole=True),
        "layer_types": layer_types,
    },
    _windows_from_a_layer_on,
)

WINDOWS_OF_TYPES = Setting(
    {"sliding_window": COUNT, "layer_types": layer_types},
    lambda hf, values: _by_type(hf, hf.get("sliding_window", 4096), [True] * values["num_layers"]),
)

_ROPE_KEYS: dict[str, Check] = {
    "rope_theta": number(above=0),
    "rope_scaling": table,
    "rope_parameters": table,
    "partial_rotary_factor": anything,
    "original_max_position_embeddings": COUNT,
}

Ropes = tuple[Rope | None, ...]


def rope(
    place: Callable[[Rope, Mapping[str, Any], Fields], Ropes] | None = None,
    keys: Mapping[str, Check] | None = None,
    default: Mapping[str, Any] | None = None,
    **options: Any,
) -> Setting:
    """Returns the setting of rotary positions.

    Args:
        place: (settings, config.json, fields so far) -> those of each layer; None for the same in
            all.
        keys: further keys of config.json that `place` reads.
        default: ``rope_parameters`` of a config.json without them.
        options: arguments of `Rope.from_hf`.
    """

    def read(hf: Mapping[str, Any], values: Fields) -> Fields:
        if default and not (hf.get("rope_parameters") or hf.get("rope_scaling")):
            hf = {**hf, "rope_parameters": default}
        rope = Rope.from_hf(hf, **({"theta": 10000.0, "context": values["context"]} | options))
        layers = values["num_layers"]
        return {"ropes": (rope,) * layers if place is None else place(rope, hf, values)}

    return Setting(_ROPE_KEYS | dict(keys or {}), read)


def in_windows(rope: Rope, hf: Mapping[str, Any], values: Fields) -> Ropes:
    return tuple(None if window is None else rope for window in values["windows"])


def layers_with_rope(key: str, value: Any) -> None:
    if not isinstance(value, list | tuple) or any(each not in (0, 1) for each in value):
        raise UserError(f"config.json: {key} is {value!r}: it must be a list of 0 and 1")


def but_every(rope: Rope, hf: Mapping[str, Any], values: Fields) -> Ropes:
    every = hf.get("no_rope_layer_interval") or 4
    usual = [(layer + 1) % every for layer in range(values["num_layers"])]
    chosen = hf.get("no_rope_layers")
    if chosen is not None:
        check_layers("no_rope_layers", chosen, len(usual))
    return tuple(rope if rotates else None for rotates in (usual if chosen is None else chosen))


def windows_without_rope(hf: Mapping[str, Any], values: Fields) -> Fields:
    """Reads windows, which by default are in the layers that rotate nothing."""
    window = hf.get("sliding_window") if hf.get("use_sliding_window") else None
    return _by_type(hf, window, [rope is None for rope in values["ropes"]])


def ropes_by_type(full: float, sliding: float, *, sliding_key: str | None = None) -> Setting:
    """Returns the setting of rotary positions that differ between layers with a window and others.

    Args:
        full: the base of the rotations in layers without a window if config.json has none.
        sliding: the base in those with one.
        sliding_key: the key of the latter, beside rope_theta for the former.
    """

    def read(hf: Mapping[str, Any], values: Fields) -> Fields:
        given = hf.get("rope_parameters") or {}
        nested = {name: given.get(name) or {} for name in ("full_attention", "sliding_attention")}
        rest = {name: value for name, value in given.items() if name not in nested}
        scaling = hf.get("rope_scaling") or rest
        everywhere = {"rope_theta": hf.get("rope_theta")} | scaling | nested["full_attention"]
        local = {"rope_theta": sliding_key and hf.get(sliding_key)} | nested["sliding_attention"]
        rope = partial(Rope.from_hf, context=values["context"])
        unbounded = rope({"rope_parameters": everywhere}, theta=full)
        within = rope({"rope_parameters": local}, theta=sliding)
        windows = values["windows"]
        return {"ropes": tuple(unbounded if window is None else within for window in windows)}

    keys = {"rope_theta": number(above=0), "rope_scaling": table, "rope_parameters": table}
    return Setting(keys | ({sliding_key: number(above=0)} if sliding_key else {}), read)


_EXPERTS = ("num_experts", "num_local_experts")
"""Both names of the number of experts: transformers reads either."""


def mixture(
    experts: int,
    per_token: int,
    *,
    width: str = "intermediate_size",
    default_width: int | None = None,
    place: Callable[[Mapping[str, Any], int], tuple[bool, ...]] | None = None,
    keys: Mapping[str, Check] | None = None,
    normalize: bool | None = None,
    balance_weight: float = 0.001,
    **settings: Any,
) -> Setting:
    """Returns the setting of feed-forwards that are mixtures of experts.

    Args:
        experts: the number of experts if config.json has none.
        per_token: the number of experts per token if config.json has none.
        width: the key of the width of an expert's hidden layer.
        default_width: that width if config.json has none.
        place: (config.json, number of layers) -> the layers that are mixtures; None for all.
        keys: further keys of config.json that `place` reads.
        normalize: whether a token's weights sum to 1; None for the key norm_topk_prob.
        balance_weight: the weight of the routers' loss if config.json has none; without
            output_router_logits, the loss is not used.
        settings: further fields of `MixtureConfig`, of which a function is called with config.json.
    """
    read: dict[str, Check] = dict.fromkeys((*_EXPERTS, "num_experts_per_tok", width), COUNT)
    read |= {"output_router_logits": switch, "router_aux_loss_coef": number(at_least=0)}
    if normalize is None:
        read["norm_topk_prob"] = switch

    def fields(hf: Mapping[str, Any], values: Fields) -> Fields:
        given = {hf[key] for key in _EXPERTS if hf.get(key) is not None}
        if len(given) > 1:
            raise UserError(
                f"config.json: {' and '.join(_EXPERTS)} are {' and '.join(map(str, given))}, which "
                "are two names of one number: give one alone"
            )
        layers = values["num_layers"]
        balance = hf.get("router_aux_loss_coef", balance_weight) or 0.0
        more: Fields = {
            name: each(hf) if callable(each) else each for name, each in settings.items()
        }
        return {
            "mixture": MixtureConfig(
                num_experts=next(iter(given), experts),
                per_token=hf.get("num_experts_per_tok") or per_token,
                inner_size=hf.get(width) or default_width or values["intermediate_size"],
                layers=(True,) * layers if place is None else place(hf, layers),
                normalize=bool(hf.get("norm_topk_prob")) if normalize is None else normalize,
                balance_weight=balance if hf.get("output_router_logits") else 0.0,
                **more,
            )
        }

    return Setting(read | dict(keys or {}), fields)


def _layer_numbers(key: str, value: Any) -> None:
    if not isinstance(value, list | tuple):
        raise UserError(f"config.json: {key} is {value!r}: it must be a list of layers")
    for each in value:
        check_number(f"config.json: {key}", each, at_least=0, whole=True)


def _sparse_layers(hf: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    step, dense = hf.get("decoder_sparse_step") or 1, hf.get("mlp_only_layers") or ()
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))


SPARSE_LAYERS: dict[str, Any] = {
    "place": _sparse_layers,
    "keys": {"decoder_sparse_step": COUNT, "mlp_only_layers": _layer_numbers},
}
"""Arguments of `mixture` for families that have other feed-forwards in between."""


def _clamp(hf: Mapping[str, Any]) -> tuple[float, float]:
    factor, limit = (hf.get(f"swiglu_{name}") for name in ("alpha", "limit"))
    return 1.702 if factor is None else factor, 7.0 if limit is None else limit


CLAMPED_GATE: dict[str, Any] = {
    "clamp": _clamp,
    "keys": {"swiglu_alpha": number(), "swiglu_limit": number(above=0)},
}
"""Arguments of `mixture` for a gate of clamped values."""

ATTENTION_BIAS = flag("attention_bias", "qkv_bias", "out_bias")
MLP_BIAS = flag("mlp_bias", "mlp_bias")
QUERY_SCALE = Setting(
    {"query_pre_attn_scalar": number(above=0)},
    lambda hf, values: {"attention_scale": float(hf.get("query_pre_attn_scalar") or 256) ** -0.5},
)
EMBEDDING_BY_WIDTH = Setting(
    {}, lambda hf, values: {"embedding_scale": float(values["hidden_size"]) ** 0.5}
)
NORMS_AROUND = always(norm_after=True)
