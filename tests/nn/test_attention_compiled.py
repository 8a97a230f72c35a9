"""Attention compiled ahead of time for a TPU v5e and an H100, by their own compilers."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "helpers" / "compile_attention.py"
COMPILER = {
    "tpu": ("libtpu", "install the extra tpu"),
    "gpu": (
        "jax_cuda12_plugin",
        "install the extra plan-gpu",
    ),
}
MIB = 2**20
MOST = {
    ("tpu", "causal"): 2,
    ("tpu", "segments"): 2,
    ("gpu", "causal"): 33,
    ("gpu", "window"): 33,
    ("gpu", "padding"): 76,
    ("gpu", "segments"): 42,
}
"""Platform and condition -> MiB of temporaries at 1,024 tokens, a few per cent above what it is."""

MASKED = {("gpu", "segments")}
"""Cases in which cuDNN needs a mask of all pairs."""


@pytest.mark.slow
@pytest.mark.parametrize("platform", list(COMPILER))
def test_kernels_hold_no_scores(platform):
    module, install = COMPILER[platform]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"no compiler for this device: {install}")
    conditions = [condition for where, condition in MOST if where == platform]
    rows = [word for condition in conditions for word in ("auto", condition, "1024")]
    settings = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR")
    environ = {name: value for name, value in os.environ.items() if name not in settings}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), platform, *rows], capture_output=True, text=True, env=environ
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kernel = "tpu_custom_call" if platform == "tpu" else "fmha"
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for condition, found in zip(conditions, lines, strict=True):
        assert any(kernel in call for call in found["calls"]), condition
        assert found["square"] == ((platform, condition) in MASKED), condition
        assert found["temporaries"] <= MOST[platform, condition] * MIB, condition
