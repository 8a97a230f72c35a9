"""Table of the architectures of GGUF files that can be read, with Hugging Face's counterparts.

The facts are those of llama.cpp's converter, which writes the files, and of its networks, where a
file leaves a setting out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

WINDOW = "attention.sliding_window"

More = Callable[[Mapping[str, Any], Collection[str]], dict[str, Any]]
"""(config so far, names of all tensors) -> further keys of config.json."""

LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""llama.cpp's names of the modules in a layer -> Hugging Face's, in most families."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufArchitecture:
    """Hugging Face's counterpart of an architecture in a GGUF file.

    Attributes:
        model_type: Hugging Face's name.
        permuted: whether llama.cpp's converter reorders the rows of q and k (it pairs
            neighboring rotary dimensions, Hugging Face pairs the halves of a head).
        norms_from_1: whether Hugging Face stores the norms' weights less 1.
        partial: whether some of a head's dimensions may stay unrotated.
        names: llama.cpp's module in a layer -> Hugging Face's where it is not that of
            `LAYER_NAMES`, with ``{}`` for the number of an expert.
        norm_eps: the keys of the norms' epsilon in config.json and, after the architecture's name,
            in the file.
        bias: the key of config.json that gives query, key and value biases.
        keys: key of config.json -> that of the file, which may lack it.
        fixed: keys of config.json that files do not have.
        more: function from the config so far and the names of all tensors to further keys.
        windowed: the counterpart of files with a sliding window, unless `keys` reads it.
        experts: the counterpart of files with a mixture of experts.
    """

    model_type: str
    permuted: bool = False
    norms_from_1: bool = False
    partial: bool = False
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    norm_eps: tuple[str, str] = ("rms_norm_eps", "attention.layer_norm_rms_epsilon")
    bias: str = "attention_bias"
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    more: More = lambda config, tensors: {}
    windowed: GgufArchitecture | None = None
    experts: GgufArchitecture | None = None

    def module(self, name: str) -> str | None:
        """Returns Hugging Face's name of a module in a layer; None if there is no such module."""
        return self.names.get(name, LAYER_NAMES.get(name))


def _mixture(block: str, gate: str, up: str, down: str) -> dict[str, str]:
    return {
        "ffn_gate_inp": f"{block}.gate",
        "ffn_gate_exps": f"{block}.experts.{{}}.{gate}",
        "ffn_up_exps": f"{block}.experts.{{}}.{up}",
        "ffn_down_exps": f"{block}.experts.{{}}.{down}",
    }


def _query_scale(layers_of_27b: int) -> More:
    """Returns the function to the scale of the scores, which llama.cpp knows by the layers."""

    def more(config: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
        size = config["head_dim"]
        if config["num_hidden_layers"] == layers_of_27b:
            size = config["hidden_size"] // config["num_attention_heads"]
        return {"query_pre_attn_scalar": size}

    return more


_WINDOW = {"sliding_window": WINDOW}
_LAYER_NORM_EPS = ("layer_norm_eps", "attention.layer_norm_epsilon")
_GELU = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
_CAP = {"final_logit_softcapping": "final_logit_softcapping"}
_GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GATE_UP = {"ffn_up": "mlp.gate_up_proj"}
_EXPERTS = _mixture("mlp", "gate_proj", "up_proj", "down_proj")
_EXPERT_COUNTS = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}

ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": GgufArchitecture(
        model_type="llama",
        permuted=True,
        windowed=GgufArchitecture(model_type="mistral", permuted=True, keys=_WINDOW),
        experts=GgufArchitecture(
            model_type="mixtral",
            permuted=True,
            names=_mixture("block_sparse_moe", "w1", "w3", "w2"),
            keys=_WINDOW
            | {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
        ),
    ),
    "qwen2": GgufArchitecture(model_type="qwen2"),
    "qwen3": GgufArchitecture(model_type="qwen3"),
    "qwen3moe": GgufArchitecture(
        model_type="qwen3_moe",
        names=_EXPERTS,
        keys=_EXPERT_COUNTS | {"moe_intermediate_size": "expert_feed_forward_length"},
        fixed={"norm_topk_prob": True},
    ),
    "olmoe": GgufArchitecture(
        model_type="olmoe", names=_EXPERTS, keys=_EXPERT_COUNTS, fixed={"norm_topk_prob": False}
    ),
    "gemma": GgufArchitecture(model_type="gemma", norms_from_1=True, fixed=_GELU),
    "gemma2": GgufArchitecture(
        model_type="gemma2",
        norms_from_1=True,
        names=_GEMMA_NAMES,
        keys=_WINDOW | _CAP | {"attn_logit_softcapping": "attn_logit_softcapping"},
        fixed=_GELU,
        more=_query_scale(46),
    ),
    "gemma3": GgufArchitecture(
        model_type="gemma3_text",
        norms_from_1=True,
        names=_GEMMA_NAMES,
        keys=_WINDOW | _CAP,
        fixed=_GELU,
        more=_query_scale(62),
    ),
    "phi3": GgufArchitecture(
        model_type="phi3",
        partial=True,
        names=_GATE_UP | {"attn_qkv": "self_attn.qkv_proj"},
        keys=_WINDOW | {"original_max_position_embeddings": "rope.scaling.original_context_length"},
    ),
    "olmo2": GgufArchitecture(
        model_type="olmo2",
        names={name: _GEMMA_NAMES[name] for name in ("post_attention_norm", "post_ffw_norm")},
    ),
    "smollm3": GgufArchitecture(model_type="smollm3", permuted=True),
    "granite": GgufArchitecture(
        model_type="granite",
        permuted=True,
        keys={
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "logits_scaling": "logit_scale",
        },
    ),
    "cohere2": GgufArchitecture(
        model_type="cohere2",
        norm_eps=_LAYER_NORM_EPS,
        keys=_WINDOW | {"logit_scale": "logit_scale"},
    ),
    "glm4": GgufArchitecture(
        model_type="glm4",
        partial=True,
        names=_GATE_UP
        | {
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
    ),
    "stablelm": GgufArchitecture(
        model_type="stablelm",
        partial=True,
        norm_eps=_LAYER_NORM_EPS,
        bias="use_qkv_bias",
        more=lambda config, tensors: {
            "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors
        },
    ),
}
"""Name in ``general.architecture`` -> its counterpart. Mistral's and Mixtral's files say llama."""
