"""Hugging Face PEFT itself, over a grid of shapes: start, output, gradients, merge.

Only methods that PEFT has as the papers have them; its LoRA-GA, for one, is another one.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.adapters.adapter import apply_layer, init_adapter, merge_adapter
from goat_jax.adapters.context import EVAL
from goat_jax.adapters.methods import method_spec
from goat_jax.testing import assert_close
from tiers import first_of_each

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")

TOKENS, ALPHA = 11, 6.0
START = jax.jit(init_adapter, static_argnums=1)
MERGE = jax.jit(merge_adapter, static_argnums=3)
SHAPES = [(24, 16), (16, 24), (20, 20), (7, 33)]
RANKS = [2, 1, 5]
# Diagonal by diagonal: the first has every shape and every rank once.
GRID = [
    (shape, RANKS[(number + shift) % len(RANKS)])
    for shift in range(len(RANKS))
    for number, shape in enumerate(SHAPES)
]


@dataclasses.dataclass(frozen=True)
class Case:
    """A method of PEFT and its form here.

    Attributes:
        method, options: ours, by the rank.
        config: rank -> PEFT's.
        arrays: PEFT's layer -> our names -> its parameters in our layout, as views.
        start: whether its own start is deterministic up to signs, so that it is kept.
    """

    method: str
    options: Callable[[int], dict[str, Any]]
    config: Callable[[int], Any]
    arrays: Callable[[Any], dict[str, Any]]
    start: bool = False


def lora_config(rank, **options):
    return peft.LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=["layer"], **options)


def lora_arrays(layer):
    own = {"a": layer.lora_A["default"].weight, "b": layer.lora_B["default"].weight}
    return {name: weight.T[None] for name, weight in own.items()}


def dora_arrays(layer):
    return lora_arrays(layer) | {"magnitude": layer.lora_magnitude_vector["default"].weight}


def adalora_arrays(layer):
    pair = {"a": layer.lora_A["default"].T[None], "b": layer.lora_B["default"].T[None]}
    return pair | {"core": layer.lora_E["default"].T}


def kasa_arrays(layer):
    return lora_arrays(layer) | {"core": layer.lora_diag["default"][None]}


def neat_arrays(layer):
    def stacked(modules):
        return torch.stack([module.weight.T for module in modules])

    arrays = {"a": layer.peanut_A["default"].weight.T[None]}
    arrays["b"] = layer.peanut_B["default"].weight.T[None]
    deep = {"encoders": layer.peanut_encoders, "decoders": layer.peanut_decoders}
    found = {name: modules["default"] for name, modules in deep.items()}
    return arrays | {name: stacked(modules) for name, modules in found.items() if len(modules)}


def sized(rank):
    return {"total_rank": rank, "alpha": ALPHA}


def neat(depth):
    return Case(
        "neat",
        lambda rank: {"total_rank": rank, "depth": depth, "value": 0.7},
        lambda rank: peft.PeanutConfig(
            r=rank, depth=depth, act_fn="relu", scaling=0.7, target_modules=["layer"]
        ),
        neat_arrays,
    )


def adalora_config(rank):
    return peft.AdaLoraConfig(
        init_r=rank + 1, target_r=rank, total_step=10, lora_alpha=ALPHA, target_modules=["layer"]
    )


CASES = {
    "lora": Case("lora", sized, lora_config, lora_arrays),
    "rslora": Case("rslora", sized, lambda r: lora_config(r, use_rslora=True), lora_arrays),
    "dora": Case("dora", sized, lambda r: lora_config(r, use_dora=True), dora_arrays),
    "pissa": Case(
        "pissa", sized, lambda r: lora_config(r, init_lora_weights="pissa"), lora_arrays, start=True
    ),
    "kasa": Case(
        "kasa",
        sized,
        lambda r: lora_config(r, kasa_config=peft.tuners.lora.KasaConfig()),
        kasa_arrays,
    ),
    "adalora": Case(
        "adalora",
        lambda r: {"total_rank": r + 1, "target_rank": r, "alpha": ALPHA},
        adalora_config,
        adalora_arrays,
    ),
    "neat": neat(0),
    "neat_deep": neat(2),
}


def peft_layer(case, shape, rank):
    """PEFT's layer, its adapter at random values unless the start itself is compared."""
    torch.manual_seed(rank)
    model = torch.nn.Module()
    model.layer = torch.nn.Linear(*shape)
    kernel = model.layer.weight.detach().clone().numpy().T
    peft.inject_adapter_in_model(case.config(rank), model)
    if not case.start:
        with torch.no_grad():
            for name, parameter in model.layer.named_parameters():
                if "base_layer" not in name and "ranknum" not in name:
                    parameter.copy_(torch.rand_like(parameter) * 0.8 + 0.1)
    return model.layer, kernel


def numbers(tree):
    return jax.tree.map(lambda t: np.asarray(t.detach().numpy()), tree)


SIZED = [(name, shape, rank) for shape, rank in GRID for name in CASES]
QUICK = [(name, *GRID[0]) for name in ("lora", "dora")]


def parts(sized):
    """Every method on a tall and on a wide kernel; every shape and every rank."""
    name, (inputs, outputs), rank = sized
    return [(name, inputs > outputs), (inputs, outputs), rank]


def name_of(sized):
    return "-".join(map(str, sized))


@pytest.mark.parametrize("sized", first_of_each(SIZED, parts, QUICK), ids=name_of)
def test_layer_is_peft_s(sized):
    name, shape, rank = sized
    case = CASES[name]
    layer, kernel = peft_layer(case, shape, rank)
    spec = method_spec(case.method, **case.options(rank))
    start = START(jnp.asarray(kernel), spec, jax.random.key(0))
    frozen = layer.base_layer.weight.detach().numpy().T.copy()  # `merge` writes in place
    assert_close(start.kernel, jnp.asarray(frozen), 1e-5)

    arrays = numbers(case.arrays(layer))
    assert {k: v.shape for k, v in start.factors.items()} == {k: v.shape for k, v in arrays.items()}
    if case.start:  # signs are arbitrary, products are not
        products = [f["a"][0] @ f["b"][0] for f in (start.factors, arrays)]
        assert_close(products[0], jnp.asarray(products[1]), 1e-5)

    rng = np.random.default_rng(rank)
    x, target = (rng.normal(size=(TOKENS, size)).astype(np.float32) for size in shape)
    bias = layer.base_layer.bias.detach().numpy()

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss_of(arrays, x):
        y = apply_layer(x, jnp.asarray(frozen), arrays, start.scale, spec, EVAL)[0] + bias[None]
        return jnp.mean(jnp.square(y - target)), y

    (_, y), grads = loss_of(arrays, x)

    given = torch.tensor(x, requires_grad=True)
    theirs = layer(given)
    loss = torch.nn.functional.mse_loss(theirs, torch.tensor(target))
    loss.backward()
    expected = numbers(case.arrays(_Gradients(layer)))
    assert_close(y, jnp.asarray(theirs.detach().numpy()), 1e-5)
    assert_close(grads[1], jnp.asarray(given.grad.numpy()), 1e-5)
    assert_close(dict(grads[0]), {k: jnp.asarray(v) for k, v in expected.items()}, 1e-5)

    layer.merge()
    merged = MERGE(jnp.asarray(frozen), arrays, start.scale, spec)
    assert_close(merged, jnp.asarray(layer.base_layer.weight.detach().numpy().T), 1e-5)


class _Gradients:
    """A PEFT layer whose parameters read as their gradients."""

    def __init__(self, of):
        self._of = of

    def __getattr__(self, name):
        return _gradient(getattr(self._of, name))

    def __getitem__(self, key):
        return _gradient(self._of[key])

    def __iter__(self):
        return iter([_Gradients(each) for each in self._of])

    def __len__(self):
        return len(self._of)


def _gradient(value):
    return value.grad if isinstance(value, torch.Tensor) else _Gradients(value)
