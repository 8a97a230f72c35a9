"""Experts in PyTorch have the outputs, balance losses and gradients of goat_jax's adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.adapters.adapter import apply_adapter, init_adapter
from goat_jax.adapters.context import Context
from goat_jax.adapters.methods import METHODS, method_spec
from goat_jax.errors import UserError
from goat_jax.interop.low_rank import removed_part
from goat_jax.interop.modules import AdaptedModule
from goat_jax.interop.peft.routed import routed_config, routed_tensors
from trained import noise

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
goat_torch = pytest.importorskip("goat_jax.torch")
Inputs = pytest.importorskip("goat_jax.torch.experts").Inputs

pytestmark = pytest.mark.slow

IN, OUT, ROWS, TOKENS = 12, 10, 3, 5
SIZES = {"total_rank": 8, "num_experts": 4, "top_k": 2}
CASES = {
    name: {"method": name}
    for name, row in METHODS.items()
    if not row.spec.router.mergeable and name != "full_moe"
} | {
    "top_p": {"method": "goat", "router": "top_p", "p": 0.6},
    "shared expert": {"method": "goat", "router": "top_k_shared"},
    "published top-k": {"method": "molora", "renormalise": False, "reference_code": True},
    "balance by task types": {"method": "loramoe", "delta": 0.2},
    "hydralora balanced": {"method": "hydralora", "router": "top_k", "aux_loss": "balance"},
    "core": {"method": "molora", "combine": "diagonal_core"},
}


def both(options):
    """An adapter whose arrays have moved, and the same one in PyTorch."""
    options = {**SIZES, "dropout": 0.0, **options}
    spec = method_spec(options.pop("method"), **options)
    kernel = jax.random.normal(jax.random.key(0), (IN, OUT)) / 3
    start = init_adapter(kernel, spec, jax.random.key(1))
    factors = noise(start.factors, 2)
    numpy = lambda tree: jax.tree.map(np.asarray, tree)  # noqa: E731
    before = AdaptedModule(spec, numpy(start.kernel), numpy(start.factors), {}, numpy(start.scale))
    now = before._replace(factors=numpy(factors))
    removed = removed_part(before, np.asarray(kernel))
    config = routed_config({"m": now}, {"m": removed[0].shape[1]}, {})
    experts = goat_torch.Experts(IN, OUT, goat_torch.GoatConfig(**config).of_module("m"))
    tensors = routed_tensors("m", now, removed)
    state = {n.removeprefix("m.goat_experts."): torch.tensor(t) for n, t in tensors.items()}
    experts.load_state_dict(state)
    return spec, kernel, start, factors, experts


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_output_loss_and_gradient_are_the_adapter_s(options):
    spec, kernel, start, factors, experts = both(options)
    x = jax.random.normal(jax.random.key(3), (ROWS, TOKENS, IN))
    mask = np.arange(TOKENS) < np.array([[5], [3], [4]])
    tasks, types = np.array([0, 2, 1]), np.array([0, 1, 1])
    ctx = Context(
        mask=jnp.asarray(mask), task_ids=jnp.asarray(tasks), task_types=jnp.asarray(types)
    )

    def ours(x):
        delta, report = apply_adapter(x, start.kernel, factors, start.scale, spec, ctx)
        change = delta + jnp.einsum("BTI,IO->BTO", x, start.kernel - kernel)
        return jnp.sum(jnp.sin(change)), (change, report.aux_loss)

    (_, (change, aux)), gradient = jax.value_and_grad(ours, has_aux=True)(x)
    there = torch.tensor(np.asarray(x), requires_grad=True)
    inputs = Inputs(*(torch.tensor(each) for each in (mask, tasks, types)))
    delta = experts(there, inputs)
    delta.sin().sum().backward()
    np.testing.assert_allclose(delta.detach().numpy(), change, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(there.grad.numpy(), gradient, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(experts.aux_loss.item(), aux, rtol=1e-5)


def test_whole_kernels_have_no_form():
    with pytest.raises(UserError, match="that change is not of low rank"):
        both({"method": "full_moe"})


def test_a_task_is_needed_where_the_experts_go_by_it():
    experts = both({"method": "moelora"})[-1]
    with pytest.raises(ValueError, match="call the model with tasks"):
        experts(torch.zeros(1, 2, IN), Inputs())
