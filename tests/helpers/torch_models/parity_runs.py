"""Model runs as parity bundles, written by transformers and torch."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from kinds import write_npz

FAMILY = {
    "bert": (
        "BertForSequenceClassification",
        "BertConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "roberta": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
         "pad_token_id": 1},
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "dropout": 0.0,
         "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    ),
    "modernbert": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0,
         "intermediate_size": 48, "local_attention": 4, "cls_token_id": 2, "sep_token_id": 3,
         "bos_token_id": 2, "eos_token_id": 3},
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 12,
         "num_key_value_heads": 2, "intermediate_size": 48},
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 24, "num_local_experts": 4},
    ),
}  # fmt: skip
TEXTS = ("qwen3", "mixtral")
"""Families that continue texts; the others classify them."""

SHORTEST = {"modernbert": 8}
"""Family -> least number of real tokens of ten. The published layer's balance loss counts padding,
too, so padding has to have the same values in both: each of its tokens sees a real one within
ModernBERT's window. Without any, torch's attention gives 0 there, ours the mean of all values."""

SCHEDULES = {
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "linear": transformers.get_linear_schedule_with_warmup,
    "constant": lambda optimizer, warmup, steps: transformers.get_constant_schedule_with_warmup(
        optimizer, warmup
    ),
}


def build(family: str, labels: int, **config):
    model_class, config_class, sizes = FAMILY[family]
    sizes = sizes | {"vocab_size": 60, "max_position_embeddings": 40, "initializer_range": 0.1}
    torch.manual_seed(3)
    made = getattr(transformers, config_class)(**sizes, num_labels=labels, **config)
    return getattr(transformers, model_class)(made).eval()


def batches_of(family: str, steps: int, labels: int, generator) -> list[dict]:
    pad = 1 if family == "roberta" else 0
    batches = []
    for _ in range(steps):
        ids = torch.randint(2, 60, (6, 10), generator=generator)
        length = torch.randint(SHORTEST.get(family, 4), 11, (6, 1), generator=generator)
        mask = (torch.arange(10)[None] < length).long()
        target = torch.randint(0, labels, (6,), generator=generator)
        if labels == 1:
            target = torch.randn(6, generator=generator)
        batch = {"input_ids": ids * mask + pad * (1 - mask), "attention_mask": mask}
        if family == "bert":
            batch["token_type_ids"] = torch.randint(0, 2, (6, 10), generator=generator)
        if family in TEXTS:
            target = ids.masked_fill(mask == 0, -100)
        batches.append(batch | {"labels": target})
    return batches


def trained_tensors(model, modules: list[str]) -> dict[str, np.ndarray]:
    tensors = {}
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        value = parameter.detach().numpy()
        if owner in modules and own == "router":
            tensors[f"{owner}.lora_gating.weight"] = value
        elif owner in modules:
            for i, expert in enumerate(value):
                tensors[f"{owner}.lora_{own.upper()}.{i}.weight"] = expert
        elif parameter.requires_grad:
            tensors[name] = value
    return {name: np.ascontiguousarray(value).copy() for name, value in tensors.items()}


def adapt(model, modules: list[str], case: dict, linear, scale) -> None:
    """Freezes the model, puts the published layer in place of its modules, frees the head."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    generator = torch.Generator().manual_seed(11)
    for name in modules:
        old = model.get_submodule(name)
        rank = case["rank"] // case["num_experts"]
        own = scale(case["init_type"], case["alpha"], rank, old.in_features, case.get("eta", 1.0))
        bias = None if old.bias is None else old.bias.detach()
        sized = {"scaling": [own] * case["num_experts"]} | case
        model.set_submodule(name, linear(old.weight.detach(), bias, sized, generator))
    for name, parameter in model.named_parameters():
        if any(name.startswith(extra) for extra in case["train_extra"]):
            parameter.requires_grad = True


def train(model, modules: list[str], case: dict, batches: list[dict]) -> dict[str, np.ndarray]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=case["lr"], weight_decay=0.0)
    word = case["schedule"].split()[0]
    scheduler = SCHEDULES[word](optimizer, case["warmup"], case["steps"])
    history: dict[str, list] = {"task_loss": [], "aux_loss": [], "grad_norm": [], "lr": []}
    first = None
    for batch in batches:
        optimizer.zero_grad()
        output = model(**batch)
        aux = torch.stack([model.get_submodule(name).aux for name in modules]).sum()
        (output.loss + case["aux_coef"] * aux).backward()
        limit = case["clip"] or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        values = (output.loss, aux, norm, torch.tensor(scheduler.get_last_lr()[0]))
        for key, value in zip(history, values, strict=True):
            history[key].append(value.item())
        first = output.logits.detach().numpy().copy() if first is None else first
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        after = model(**batches[0])
    numbers = {key: np.array(values) for key, values in history.items()}
    return numbers | {
        "logits_first": first,
        "logits_after": after.logits.numpy(),
        "loss_after": np.array(after.loss.item()),
    }


def write_run(
    folder: Path, family: str, modules: list[str], linear, scale, labels=3, config=None, **options
) -> Path:
    """Trains a random model of a family in torch and writes it down as a parity bundle."""
    folder.mkdir(parents=True)
    case = {
        "name": folder.name, "rank": 8, "alpha": 16, "num_experts": 4, "top_k": 2,
        "init_type": "goat", "rho": 10, "lr": 0.002, "warmup": 2, "steps": 8,
        "schedule": "cosine (HF get_cosine_schedule_with_warmup)", "clip": 1.0,
        "aux_coef": 0.001, "train_extra": ["classifier"], "modules": modules,
    } | options  # fmt: skip
    case = {"init_cof": 1 / case["num_experts"]} | case
    model = build(family, labels, **(config or {}))
    model.save_pretrained(folder)
    adapt(model, modules, case, linear, scale)
    save_file(trained_tensors(model, modules), folder / "adapter_init.safetensors")
    generator = torch.Generator().manual_seed(5)
    batches = batches_of(family, case["steps"], labels, generator)
    arrays = {f"{k}_{i}": v.numpy() for i, batch in enumerate(batches) for k, v in batch.items()}
    write_npz(folder / "batches.npz", arrays)
    write_npz(folder / "expected.npz", train(model, modules, case, batches))
    save_file(trained_tensors(model, modules), folder / "adapter_final.safetensors")
    rank = case["rank"] // case["num_experts"]
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    first = scale(case["init_type"], case["alpha"], rank, 32, case.get("eta", 1.0))
    meta = {"scaling": first, "trainable_params": count} | case
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def block(family: str, layers=(0, 1)) -> list[str]:
    names = {
        "bert": ("bert.encoder.layer", ["attention.self.query", "attention.self.key",
                 "attention.self.value", "attention.output.dense", "intermediate.dense",
                 "output.dense"]),
        "roberta": ("roberta.encoder.layer", ["attention.self.query", "attention.self.value",
                    "output.dense"]),
        "distilbert": ("distilbert.transformer.layer", ["attention.q_lin", "attention.v_lin",
                       "ffn.lin1", "ffn.lin2"]),
        # Its other layers are several in one, which here have an adapter each.
        "modernbert": ("model.layers", ["attn.Wo", "mlp.Wo"]),
        "qwen3": ("model.layers", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                  "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        "mixtral": ("model.layers", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                    "self_attn.o_proj"]),
    }  # fmt: skip
    prefix, inner = names[family]
    return [f"{prefix}.{layer}.{name}" for layer in layers for name in inner]
