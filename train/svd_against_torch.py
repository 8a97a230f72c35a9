"""Times the initialization of a model's adapters, and PyTorch's SVD of the same kernels.

    python train/svd_against_torch.py --model package:smollm2

Initialization decomposes every linear layer's kernel, takes the experts' segments and subtracts
them from the base. A second initialization finds the decompositions that the first has stored.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import torch

from goat_jax.adapters.methods import method_spec
from goat_jax.bench.turns import machine_line
from goat_jax.cli.entry import Parser, in_one_line
from goat_jax.injection.inject import inject
from goat_jax.injection.svd_cache import ROUTES, SvdStore
from goat_jax.interop.modules import read_kernels
from goat_jax.models.load import load_model
from goat_jax.nn.named_modules import find_modules
from goat_jax.pretrained.resolve import find_model
from goat_jax.text_tables import render_table
from goat_jax.validation.checks import check_number


def kernels_of(model: Any) -> list[torch.Tensor]:
    """Returns the kernels of all linear layers as torch tensors."""
    names = [name for site in find_modules(model) for name in site.names()]
    return [torch.from_numpy(kernel.copy()) for kernel in read_kernels(model, names).values()]


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    return in_one_line("svd_against_torch", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="svd_against_torch",
        description="Starts in JAX, decompositions in PyTorch",
    )
    parser.add_argument("--model", default="package:smollm2")
    parser.add_argument("--method", default="goat")
    parser.add_argument("--rank", type=int, default=32)
    options = parser.parse_args(arguments)
    check_number("--rank", options.rank, at_least=1, whole=True)
    path, key = find_model(options.model), jax.random.key(0)
    spec = method_spec(options.method, total_rank=options.rank)
    kernels = kernels_of(load_model(path, key=key).model)

    def start(store: SvdStore) -> float:
        model = load_model(path, key=key).model

        def work() -> None:
            inject(model, spec, key=key, svds=store)
            jax.block_until_ready(jax.tree.leaves(model))

        return seconds(work)

    print(machine_line(), "\n")
    theirs = seconds(lambda: [torch.linalg.svd(kernel, full_matrices=False) for kernel in kernels])
    rows = [["torch.linalg.svd", f"{theirs:.1f}", "1.000", ""]]
    for route in ROUTES:
        with tempfile.TemporaryDirectory() as folder:
            first, second = (start(SvdStore(Path(folder), route=route)) for _ in range(2))
        cells = [f"{first:.1f}", f"{first / theirs:.3f}", f"{second:.2f} s, {second / first:.1%}"]
        rows.append([f"start by {route}", *cells])
    print(
        f"{options.model}, {len(kernels)} kernels, {options.method} of total rank {options.rank}\n"
    )
    print(render_table(["", "seconds", "over torch", "second start"], rows, markdown=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
