"""The decompositions that a model's adapters start from, in JAX and in PyTorch, taking turns.

    python train/svd_against_torch.py --model smollm2-135m

One kernel of each shape, random; a shape's time counts as often as the model has kernels of it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from goat_jax.bench.turns import machine, take_turns
from goat_jax.config import ModelConfig, RunConfig
from goat_jax.data.tasks import language_files
from goat_jax.run.shapes import kernel_shapes
from goat_jax.svd_store import ROUTES
from goat_jax.tables import render_table


def contenders(kernel: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Every way to decompose one kernel."""
    ours = {name: lambda route=route: route(kernel) for name, route in ROUTES.items()}
    theirs = torch.from_numpy(kernel)
    return {"torch": lambda: torch.linalg.svd(theirs, full_matrices=False)[1].sum().item(), **ours}


def main() -> None:
    parser = argparse.ArgumentParser(description="Decompositions in JAX and PyTorch")
    parser.add_argument("--model", default="smollm2-135m", help="whose kernels")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    task = language_files("none.jsonl", "none.jsonl")
    shapes = Counter(kernel_shapes(RunConfig(ModelConfig(options.model), task)).values())
    print("  ".join(f"{key}: {value}" for key, value in machine().items()), "\n")
    rows, whole = [], Counter()
    for shape, count in shapes.items():
        kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        times = take_turns(contenders(kernel), options.turns)
        whole.update({name: count * time.median for name, time in times.items()})
        ratios = [f"{time.over(times['torch']):.3f}" for time in times.values()]
        rows.append([f"{shape[0]} x {shape[1]}", count, *ratios])
    rows.append(["all", sum(shapes.values()), *(f"{whole[n] / whole['torch']:.3f}" for n in whole)])
    print(render_table(["kernel", "kernels", *whole], rows, markdown=True))
    print("\nseconds for all:  " + "  ".join(f"{n}: {s:.1f}" for n, s in whole.items()))


if __name__ == "__main__":
    main()
