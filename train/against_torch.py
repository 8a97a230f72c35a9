"""Times a config's training step in JAX and in PyTorch, interleaved in one process.

    python train/against_torch.py --config gsm8k --model smollm2-135m --methods lora goat
    python train/against_torch.py --config demo --model all-minilm-l6-v2 \\
        --methods lora goat --train.batch-size 8

Needs torch, transformers and peft. In PyTorch two adapters are measured on the same linear layers
at the same total rank: PEFT's LoRA, and a mixture that loops over its experts, gathers the tokens
of each and adds its outputs back, as published mixtures of LoRA experts do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from goat_jax.bench.steps import step_of
from goat_jax.bench.turns import machine_line, take_turns
from goat_jax.cli.entry import Parser, in_one_line
from goat_jax.cli.verbs.compare import entry_config, read_entries
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.models.known_sizes import transformers_config
from goat_jax.text_tables import render_table
from goat_jax.training.abstract_run import batch_shapes
from goat_jax.validation.checks import check_number


class RoutedLora(nn.Module):
    """Linear layer plus the top-k experts of each token, computed in a loop over the experts."""

    def __init__(self, base: nn.Linear, rank: int, experts: int = 8, top_k: int = 2):
        super().__init__()
        self.base, self.top_k = base, top_k
        self.gate = nn.Linear(base.in_features, experts, bias=False)
        each = rank // experts
        self.a = nn.ModuleList(
            nn.Linear(base.in_features, each, bias=False) for _ in range(experts)
        )
        self.b = nn.ModuleList(
            nn.Linear(each, base.out_features, bias=False) for _ in range(experts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.topk(torch.softmax(self.gate(tokens), dim=-1), self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        added = torch.zeros(len(tokens), self.base.out_features, dtype=x.dtype)
        for expert, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            rows, places = torch.where(chosen == expert)
            output = b(a(tokens[rows])) * weights[rows, places][:, None]
            added = added.index_add(0, rows, output)
        return self.base(x) + added.reshape(*x.shape[:-1], -1)


def torch_model(config: RunConfig, model: str) -> tuple[Any, list[str]]:
    """Returns a model with random weights and the names of the linear layers in its blocks."""
    import transformers

    language = "loss_mask" in batch_shapes(config, 1)
    kind = "AutoModelForCausalLM" if language else "AutoModelForSequenceClassification"
    sizes = transformers_config(model)
    try:
        made = getattr(transformers, kind).from_config(sizes, attn_implementation="sdpa")
    except ValueError as error:  # such as an image model
        reason = str(error).splitlines()[0]
        raise UserError(f"--model {model}: transformers has no {kind} of it ({reason})") from None
    names = [
        name
        for name, module in made.named_modules()
        if isinstance(module, nn.Linear) and ".layer" in name
    ]
    return made.train(), names


def with_peft(model: Any, names: list[str], rank: int) -> Any:
    """Returns the model with PEFT's LoRA on the named layers."""
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2, target_modules=names))


def with_experts(model: Any, names: list[str], rank: int) -> Any:
    """Returns the model with routed experts on the named layers; everything else is frozen."""
    model.requires_grad_(False)
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, last, RoutedLora(getattr(owner, last), rank))
    return model


def torch_step(model: Any, config: RunConfig) -> Callable[[], float]:
    """Returns a function that makes one AdamW step on rows without padding, as the JAX steps do."""
    rows, length = config.train.batch_size, config.train.max_length
    ids = torch.randint(0, 1000, (rows, length))
    labels = ids if "loss_mask" in batch_shapes(config, 1) else torch.zeros(rows, dtype=torch.long)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    return step


def main(arguments: Sequence[str] | None = None) -> int:
    return in_one_line("against_torch", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="against_torch",
        description="Training steps in JAX and PyTorch, measured alternately",
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--model", required=True, help="model whose sizes are used")
    parser.add_argument("--methods", nargs="+", default=["lora", "goat"])
    parser.add_argument("--turns", type=int, default=7)
    options, overrides = parser.parse_known_args(arguments)
    check_number("--turns", options.turns, at_least=1, whole=True)
    configs = {
        entry.label: entry_config(options.config, entry, overrides, "against_torch")
        for entry in read_entries(options.methods)
    }
    first = next(iter(configs.values()))
    rank = first.adapter.spec().total_rank
    steps = {f"jax {name}": step_of(config, options.model).call for name, config in configs.items()}
    for name, adapt in (("torch peft lora", with_peft), ("torch loop over experts", with_experts)):
        model, names = torch_model(first, options.model)
        steps[name] = torch_step(adapt(model, names, rank), first)
    times = take_turns(steps, options.turns)
    print(machine_line())
    print(f"{first.train.batch_size} x {first.train.max_length} tokens, total rank {rank}\n")
    headers = ["step", "median s", *(f"over {name}" for name in steps)]
    rows = [
        [name, f"{t.median:.3f}", *(f"{t.over(other):.3f}" for other in times.values())]
        for name, t in times.items()
    ]
    print(render_table(headers, rows, markdown=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
