"""Low-rank factors on the pretrained kernel, method by method: they have the merged kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.adapters.adapter import init_adapter, merge_adapter
from goat_jax.adapters.methods import METHODS
from goat_jax.errors import UserError
from goat_jax.interop.low_rank import low_rank
from goat_jax.interop.modules import AdaptedModule
from goat_jax.testing import assert_close
from tiers import each
from trained import noise

IN, OUT = 12, 10
RNG = np.random.default_rng(0)
KERNEL, GRADIENT = (RNG.normal(size=(IN, OUT)).astype(np.float32) for _ in range(2))
SIZES = {
    "multilora": {"total_rank": 6},
    "adalora": {"total_rank": 4, "target_rank": 2},
    "lora_dash": {"total_rank": 2, "num_directions": 2},
    "full": {},
}
MERGEABLE = [
    name
    for name, row in METHODS.items()
    if row.spec.router.mergeable and row.spec.combine.layout != "network"
]


def modules(name):
    """A module after training and before it, as an export reads them."""
    spec = METHODS[name].spec.replace(**SIZES.get(name, {"total_rank": 2}))
    start = jax.jit(init_adapter, static_argnums=1)(KERNEL, spec, jax.random.key(0), GRADIENT)
    now, before = (
        AdaptedModule(spec, *jax.tree.map(np.asarray, (start.kernel, *arrays, start.scale)))
        for arrays in (noise((start.factors, start.constants), 1), (start.factors, start.constants))
    )
    return now, before


LOW_RANK = [name for name in MERGEABLE if name != "full"]


@pytest.mark.parametrize("name", each(LOW_RANK, ["lora", "pissa"]))
def test_factors_have_the_merged_kernel(name):
    now, start = modules(name)
    found = low_rank(now, start, KERNEL if now.spec.kernel_edit.looks_at_kernel else None)
    kernel = KERNEL + found.scale * found.a @ found.b
    if found.magnitude is not None:
        kernel = found.magnitude * kernel / np.linalg.norm(kernel, axis=0)
    trained = jax.tree.map(jnp.asarray, (now.kernel, now.arrays, now.scale))
    merged = merge_adapter(trained[0], trained[1], trained[2], now.spec)
    assert_close(kernel, merged, 1e-5)
    assert np.abs(kernel - KERNEL).max() > 1e-2


def test_whole_kernels_have_no_low_rank():
    with pytest.raises(UserError, match="not of low rank"):
        low_rank(*modules("full"))
