"""Our layer against the PyTorch restatement: values, gradients, AdamW steps, all methods.

Tolerances are relative to the largest value expected (max norm). Float32: 1e-5 for outputs,
gradients and the losses of a training run, 1e-4 for the output after it, because Adam divides by
the gradient's size, so that rounding in entries with a tiny gradient comes back at full size.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from goat_jax.adapters.adapter import init_adapter
from goat_jax.adapters.context import EVAL
from goat_jax.adapters.methods import METHODS, method_spec
from goat_jax.nn.dense import Adapter, Dense, merge_model, run_model, split_model
from goat_jax.testing import assert_close, relative_error
from tiers import each, first_of_each

TOKENS, STEPS, RATE, DECAY, COEF = 21, 10, 3e-3, 0.1, 0.5
MARGIN = 1e-4  # far above the rounding of a logit, which is about 1e-6


class Case(NamedTuple):
    """A layer: m outputs, n inputs, and its experts of rank d."""

    m: int
    n: int
    experts: int
    top_k: int
    d: int
    bias: bool = True
    published: bool = False
    unequal: bool = False

    def name(self):
        flags = [f for f in ("bias", "published", "unequal") if getattr(self, f)]
        return "-".join([f"{self.m}x{self.n}", f"E{self.experts}k{self.top_k}d{self.d}", *flags])

    def spec(self):
        return method_spec(
            "goat",
            total_rank=self.experts * self.d,
            num_experts=self.experts,
            top_k=self.top_k,
            reference_code=self.published,
        )


QUICK = [
    Case(24, 16, 1, 1, 3),
    Case(16, 24, 4, 2, 2, unequal=True, published=True),
    Case(24, 16, 8, 1, 1, published=True),
    Case(16, 16, 8, 8, 1, bias=False, unequal=True),
]
SIZES = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 8)]
FULL = [
    Case(m, n, experts, top_k, d, bias, published, unequal)
    for (m, n), (experts, top_k), d, (bias, published, unequal) in itertools.product(
        [(24, 16), (16, 24), (16, 16)],
        SIZES,
        [1, 2],
        [(True, False, True), (False, True, False)],
    )
]


def random_layer(case, seed=0):
    """Arrays in torch's layout, float32, away from ties for the tokens they come with."""
    rng = np.random.default_rng(seed)
    m, n, e, d = case.m, case.n, case.experts, case.d
    shapes = {"weight": (m, n), "bias": (m,), "a": (e, d, n), "b": (e, m, d), "router": (e, n)}
    arrays = {name: rng.normal(size=shape) * 0.3 for name, shape in shapes.items()}
    arrays["scale"] = np.linspace(1.0, 2.5, e) if case.unequal else np.full(e, 1.5)
    arrays |= {"x": rng.normal(size=(TOKENS, n)), "target": rng.normal(size=(TOKENS, m))}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def make_dense(kernel, bias, factors, scale, spec):
    dense = Dense(1, 1, rngs=nnx.Rngs(0))
    dense.kernel = nnx.Param(jnp.asarray(kernel))
    dense.bias = nnx.Param(jnp.asarray(bias)) if bias is not None else nnx.data(None)
    factors = {name: jnp.asarray(array) for name, array in factors.items()}
    dense.adapter = Adapter(factors, jnp.asarray(scale), spec, salt=1)
    return dense


def run_ours(dense, x, target, spec, steps=STEPS):
    """Everything that is compared, from the two pytrees a model splits into; one compilation."""
    graph, trainable, base = split_model(dense)
    optimizer = optax.adamw(RATE, eps=1e-8, weight_decay=DECAY)

    def loss(trainable, x):
        y, sown = run_model(merge_model(graph, trainable, base), x, EVAL)
        aux = sown["adapter"]["report"][0].aux_loss
        error = y.astype(jnp.float32) - jnp.asarray(target)
        return jnp.square(error).mean() + COEF * aux, (y, aux)

    def train_step(carry, _):
        trainable, state = carry
        found = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(trainable, x)
        with jax.numpy_dtype_promotion("standard"):  # optax does not pass under "strict"
            updates, state = optimizer.update(found[1][0], state, trainable)
        return (optax.apply_updates(trainable, updates), state), found

    # One step more than asked for, so that the last one sees the output after all of them.
    start = (trainable, optimizer.init(trainable))
    history = jax.jit(lambda start: jax.lax.scan(train_step, start, length=steps + 1)[1])(start)
    (losses, (outputs, aux)), (gradients, x_gradients) = history
    found = {"loss": losses[0], "y": outputs[0], "aux": aux[0], "grad_x": x_gradients[0]}
    for name, array in gradients["adapter"]["adapter"].items():
        found[f"grad_{name}"] = array[0]
    return found | {"losses": losses[:-1], "y_last": outputs[-1]}


class Tie(Exception):
    """The data comes so near to a tie that rounding could decide which expert is chosen."""


def run_torch(torch_layer, arrays, top_k, published, dtype, routed=True, steps=STEPS):
    """The same by torch. `dtype` is that of x and weight; factors are float32, or x's if wider."""
    import torch

    width = torch.float64 if dtype == torch.float64 else torch.float32
    parts = {name: torch.tensor(arrays[name], dtype=width) for name in ("a", "b", "router")}
    bias = torch.tensor(arrays["bias"], dtype=width) if arrays["bias"] is not None else None
    weight, x = (torch.tensor(arrays[name]).to(dtype) for name in ("weight", "x"))
    target = torch.tensor(arrays["target"], dtype=width)
    x.requires_grad_()
    router = parts["router"] if routed else None
    layer = torch_layer.Layer(
        weight, bias, parts["a"], parts["b"], router, arrays["scale"].tolist(), top_k
    )
    loss, y, aux = layer.loss(x, target, COEF, published)
    loss.backward()
    found = {"loss": loss, "y": y, "aux": aux, "grad_x": x.grad}
    # Ours are (E, I, R), (E, R, O), (I, E).
    found |= {"grad_a": layer.a.grad.mT, "grad_b": layer.b.grad.mT}
    if routed:
        found["grad_router"] = layer.router.grad.mT
    x = x.detach()
    settings = {"steps": steps, "lr": RATE, "weight_decay": DECAY}
    losses, y_last, margin = torch_layer.train(layer, x, target, COEF, published, **settings)
    if margin < MARGIN:
        raise Tie(f"the k-th logit is only {margin} above the next: choose another seed")
    found |= {"losses": losses, "y_last": y_last}
    return {
        name: np.asarray(v if isinstance(v, list) else v.detach().to(width))
        for name, v in found.items()
    }


def compare(ours, theirs):
    last = {"y_last": ours.pop("y_last")}, {"y_last": theirs.pop("y_last")}
    assert_close(ours, theirs, 1e-5)
    assert_close(*last, 1e-4)
    change = relative_error(last[1]["y_last"], theirs["y"])
    assert change > 0.02, "training must have moved the output"


def check_case(torch_layer, case, seed=0):
    import torch

    arrays = random_layer(case, seed)
    if not case.bias:
        arrays["bias"] = None
    try:
        theirs = run_torch(torch_layer, arrays, case.top_k, case.published, torch.float32)
    except Tie:
        return check_case(torch_layer, case, seed + 1)
    transposed = {name: arrays[name].swapaxes(-1, -2) for name in ("a", "b", "router")}
    spec = case.spec()
    dense = make_dense(arrays["weight"].T, arrays["bias"], transposed, arrays["scale"], spec)
    ours = run_ours(dense, jnp.asarray(arrays["x"]), arrays["target"], spec)
    compare(ours, theirs)


@pytest.mark.parametrize("case", each(QUICK, QUICK[1::2]), ids=Case.name)
def test_layer(torch_layer, case):
    check_case(torch_layer, case)


def interacting(case):
    """Every number of experts, both formulas, every shape of a kernel with every rank."""
    return [(case.experts, case.top_k), case.published, (case.m, case.n, case.d)]


@pytest.mark.parametrize("case", first_of_each(FULL, interacting), ids=Case.name)
def test_layer_on_the_full_grid(torch_layer, case):
    check_case(torch_layer, case)


# Row -> choice of segments (None: zero start), rho, scale rule, routed, by spectrum.
ROWS = {
    "lora": (None, 1.0, "lora", False, False),
    "rslora": (None, 1.0, "rslora", False, False),
    "pissa": ("P", 1.0, "lora", False, False),
    "milora": ("M", 1.0, "lora", False, False),
    "molora": (None, 1.0, "lora", True, False),
    "goat": ("O", 10.0, "theory", True, False),
    "goat_plus": ("O", 10.0, "theory", True, True),
}


@pytest.mark.parametrize("row", each(ROWS, ["pissa", "molora"]))
def test_method(torch_layer, row):
    """Compares start, frozen weight, scales, forward, gradients and training, from one weight."""
    import torch

    choice, rho, rule, routed, by_spectrum = ROWS[row]
    spec = METHODS[row].spec
    spec = spec.replace(total_rank=8, num_experts=4 if routed else 1, top_k=2 if routed else 1)
    case = Case(16, 24, spec.num_experts, spec.top_k, spec.rank)
    arrays = random_layer(case, seed=4)
    arrays["weight"] *= 3

    start = jax.jit(lambda kernel: init_adapter(kernel, spec, jax.random.key(5)))(
        jnp.asarray(arrays["weight"].T)
    )
    factors = {name: np.asarray(array).swapaxes(-1, -2) for name, array in start.factors.items()}
    s = torch_layer.scale_of(rule, case.n, case.d, alpha=spec.alpha)
    theirs = torch_layer.Start(torch.tensor(arrays["weight"]), None, None, [s] * case.experts)
    if choice is not None:
        options = {"rho": rho, "by_spectrum": by_spectrum, "routed": routed}
        weight = torch.tensor(arrays["weight"])
        theirs = torch_layer.svd_start(weight, case.experts, case.d, choice, s, **options)
        assert_close(factors["b"] @ factors["a"], (theirs.b @ theirs.a).numpy(), 3e-5)
    assert_close(start.scale, np.asarray(theirs.scale))
    assert_close(start.kernel, theirs.weight.numpy().T)

    # Torch continues from its own weight and scales; only factors are ours (signs, random draws).
    arrays |= factors | {"weight": theirs.weight.numpy(), "scale": np.asarray(theirs.scale)}
    dense = make_dense(start.kernel, arrays["bias"], start.factors, start.scale, spec)
    ours = run_ours(dense, jnp.asarray(arrays["x"]), arrays["target"], spec)
    compare(ours, run_torch(torch_layer, arrays, spec.top_k, False, torch.float32, routed))


def test_every_row_that_torch_knows_is_tested():
    assert set(ROWS) <= set(METHODS)


@pytest.mark.slow
def test_bfloat16_compute_with_float32_adapters(torch_layer):
    """bf16 x and weight. No two implementations round alike, so each is held against float64.

    A bf16 number has 8 bits: one rounding is up to 2^-9 of it. Torch rounds the running sum after
    every expert, we contract them all at once, so our error may not be above twice torch's, and
    the two differ by no more than both errors together, which stay below 2^-6.
    """
    import torch

    case = Case(24, 32, 4, 2, 2, unequal=True)
    arrays = random_layer(case, seed=1)
    for name in ("x", "weight"):  # the same point for all three
        arrays[name] = np.asarray(jnp.asarray(arrays[name], jnp.bfloat16), np.float32)
    spec = case.spec()
    transposed = {name: arrays[name].swapaxes(-1, -2) for name in ("a", "b", "router")}
    kernel = jnp.asarray(arrays["weight"].T, jnp.bfloat16)
    dense = make_dense(kernel, arrays["bias"], transposed, arrays["scale"], spec)
    ours = run_ours(dense, jnp.asarray(arrays["x"], jnp.bfloat16), arrays["target"], spec)
    rounded, exact = (
        run_torch(torch_layer, arrays, case.top_k, case.published, dtype)
        for dtype in (torch.bfloat16, torch.float64)
    )
    assert ours["y"].dtype == ours["grad_x"].dtype == jnp.bfloat16
    assert ours["grad_a"].dtype == ours["grad_router"].dtype == jnp.float32
    assert_close(ours["aux"], exact["aux"], 1e-6)  # routing is float32 all the way
    for name in sorted(ours.keys() - {"aux"}):
        our_error, torch_error = (relative_error(r[name], exact[name]) for r in (ours, rounded))
        assert our_error <= max(2 * torch_error, 2**-9), (name, our_error, torch_error)
        assert_close({name: ours[name]}, {name: rounded[name]}, 2**-6)
