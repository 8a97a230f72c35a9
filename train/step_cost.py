"""What a training step of a decoder costs: methods side by side, and PEFT's LoRA in PyTorch.

    python train/step_cost.py --methods lora goat                (SmolLM2-135M's sizes)
    python train/step_cost.py --methods lora goat --torch        (needs torch, transformers, peft)

Steps of all contestants take turns, so that a noisy machine is noisy for each of them; what is
printed are medians and their ratios, and the bytes that the compiler plans, which are exact.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.methods import method_spec
from goat_jax.inject import inject
from goat_jax.layers import split_model
from goat_jax.models.decoder import Decoder, DecoderConfig
from goat_jax.optim.optimizer import OptimizerConfig, make_optimizer
from goat_jax.run.objectives import LANGUAGE
from goat_jax.run.state import RunState
from goat_jax.run.step import make_train_step
from goat_jax.tables import render_table

SMOLLM2 = DecoderConfig(
    vocab_size=49152,
    hidden_size=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_size=64,
    intermediate_size=1536,
    context=2048,
    windows=(None,) * 30,
    tie_embeddings=True,
)


def make_batch(rows: int, tokens: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, SMOLLM2.vocab_size, (rows, tokens))
    ones = np.ones((rows, tokens), np.int32)
    return {
        "input_ids": ids.astype(np.int32),
        "segments": ones,
        "attention_mask": ones,
        "learnt": ones,
        "weights": np.ones(rows, np.float32),
    }


def jax_step(
    method: str, rank: int, batch: dict[str, np.ndarray]
) -> tuple[Callable[[], float], int]:
    """A function that runs one step and waits for it, and the bytes of the compiled step."""
    model = Decoder(SMOLLM2, rngs=nnx.Rngs(0))
    inject(model, method_spec(method, total_rank=rank), key=jax.random.key(0))
    graph, trainable, base = split_model(model)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4), 1000)
    state = RunState.create(trainable, optimizer, jax.random.key(0))
    step = make_train_step(graph, LANGUAGE, optimizer, aux_weight=1e-3)
    on_device = {name: jnp.asarray(value) for name, value in batch.items()}
    planned = step.lower(state, base, on_device).compile().memory_analysis()  # type: ignore
    held = [state]

    def run() -> float:
        held[0], metrics = step(held[0], base, on_device)
        return float(metrics["loss"])

    return run, planned.temp_size_in_bytes + planned.argument_size_in_bytes


def torch_step(rank: int, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """The same step with PEFT's LoRA on all seven projections in PyTorch."""
    import peft
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=SMOLLM2.vocab_size,
        hidden_size=SMOLLM2.hidden_size,
        num_hidden_layers=SMOLLM2.num_layers,
        num_attention_heads=SMOLLM2.num_heads,
        num_key_value_heads=SMOLLM2.num_kv_heads,
        intermediate_size=SMOLLM2.intermediate_size,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets)
    model = peft.get_peft_model(model, lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    ids = torch.from_numpy(batch["input_ids"]).long()

    def run() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return float(loss)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps of methods, taking turns")
    parser.add_argument("--methods", nargs="+", default=["lora", "goat"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torch", action="store_true", help="also PEFT's LoRA in PyTorch")
    options = parser.parse_args()
    batch = make_batch(options.rows, options.tokens)
    made = {method: jax_step(method, options.rank, batch) for method in options.methods}
    steps = {method: run for method, (run, _) in made.items()}
    if options.torch:
        steps["torch peft lora"] = torch_step(options.rank, batch)
    for run in steps.values():
        run()  # compiles, or warms up
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    first, first_bytes = middle[options.methods[0]], made[options.methods[0]][1]
    rows = []
    for name, values in seconds.items():
        planned = made[name][1] if name in made else None
        rows.append(
            [
                name,
                f"{middle[name]:.2f}",
                f"{min(values):.2f}-{max(values):.2f}",
                f"{middle[name] / first:.3f}",
                "-" if planned is None else f"{planned / 2**20:,.0f}",
                "-" if planned is None else f"{planned / first_bytes:.3f}",
            ]
        )
    head = ["step", "median s", "range", "ratio", "planned MiB", "ratio"]
    print(f"{options.rows} x {options.tokens} tokens, rank {options.rank}, {options.repeats} turns")
    print(render_table(head, rows))


if __name__ == "__main__":
    main()
