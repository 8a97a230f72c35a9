"""Contract of every method, row by row of METHODS, as a layer and in models."""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from goat_jax.adapters.adapter import AdapterInit, apply_layer, init_adapter, merge_adapter
from goat_jax.adapters.context import Context
from goat_jax.adapters.methods import METHODS
from goat_jax.adapters.spec import START_ONLY, AdapterSpec
from goat_jax.errors import UserError
from goat_jax.injection.inject import inject
from goat_jax.models.decoder.model import Decoder, tiny_decoder_config
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.nn.dense import Adapter, Dense, merge_model, run_model, split_model
from goat_jax.nn.named_modules import find_modules, reports_by_name
from goat_jax.testing import assert_close
from kinds import compiled
from tiers import first_of_each

IN, OUT, BATCH, TOKENS = 24, 20, 3, 5
SIZES = {"adalora": {"total_rank": 6, "target_rank": 2}, "pissa": {"total_rank": 2, "alpha": 2.0},
         "full": {}, "full_moe": {}, "lora_dash": {"total_rank": 2, "num_directions": 3},
         "neat": {"total_rank": 4, "depth": 1}, "loramoe": {"total_rank": 16, "delta": 0.1},
         "moelora": {"total_rank": 16, "num_tasks": 3, "task_width": 6}}  # fmt: skip
CTX = Context(task_ids=jnp.array([2, 0, 3]), task_types=jnp.array([0, 1, 1]))

START = jax.jit(init_adapter, static_argnums=1)
APPLY = jax.jit(apply_layer, static_argnames="spec")


def small(name):
    """The row at sizes that fit the kernels of these tests: rank 2 for every expert."""
    spec = METHODS[name].spec
    return spec.replace(**SIZES.get(name, {"total_rank": 2 * spec.num_experts}))


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


KERNEL, GRADIENT, X = random(IN, OUT), random(IN, OUT, seed=1), random(BATCH, TOKENS, IN, seed=2)
TARGET = random(BATCH, TOKENS, OUT, seed=3)


@dataclasses.dataclass
class Layer:
    """A row as a layer: in its initial state, and with all of its arrays perturbed."""

    name: str
    spec: AdapterSpec
    start: AdapterInit
    factors: dict
    constants: dict

    def arrays(self):
        return self.start.factors | self.start.constants

    def moved(self):
        return self.factors | self.constants


PARTS_OF_A_LAYER = ("initializer", "kernel_edit", "router", "combine", "scale", "aux_loss")


def kinds_of_parts(name, parts=PARTS_OF_A_LAYER):
    """Methods of the same kinds differ in numbers, or only in how they are trained."""
    return [type(getattr(METHODS[name].spec, part)) for part in parts]


QUICK_LAYERS = ["lora", "goat"]
LAYERS = first_of_each(METHODS, kinds_of_parts, QUICK_LAYERS)


@pytest.fixture(scope="module", params=LAYERS)
def layer(request):
    spec = small(request.param)
    start = START(KERNEL, spec, jax.random.key(0), GRADIENT)
    return Layer(request.param, spec, start, moved(start.factors), moved(start.constants))


def moved(tree):
    return {
        name: value + 0.3 * random(*value.shape, seed=7 + number)
        for number, (name, value) in enumerate(tree.items())
    }


def apply(layer, arrays, run: Callable = APPLY):
    return run(X, layer.start.kernel, arrays, layer.start.scale, layer.spec, CTX)


E = {"a": "EIR", "b": "ERO"}
ROUTED = {**E, "router": "IE"}
SHAPES = {
    "dora": {**E, "magnitude": "O"},
    "kasa": {**E, "core": "ER"},
    "adalora": {**E, "core": "ER"},
    "neat": {"a": "1OR", "b": "1RO", "encoders": "1RR", "decoders": "1RR"},
    "lora_dash": {**E, "coefficients": "3"},
    "multilora": {**E, "gain": "EO"},
    "hydralora": {**ROUTED, "a": "1IR"},
    "moelora": {**E, "task_embedding": "46", "task_gate": "6E"},
    "adamole": {**ROUTED, "threshold": "I1", "threshold_bias": "1"},
    "full": {"kernels": "EIO"},
    "full_moe": {"kernels": "EIO", "router": "IE"},
} | {name: ROUTED for name in ("molora", "molora_soft", "loramoe", "goat", "goat_plus")}


def test_a_started_layer_reads_nothing_of_its_start(layer):
    """Runs that differ in these fields share a compiled step."""
    blind = copy.copy(layer.spec)
    for name in START_ONLY:
        object.__setattr__(blind, name, None)
    arrays, start = layer.moved(), layer.start

    def program(spec):
        def layer_of(x, kernel, arrays, scale):
            return apply_layer(x, kernel, arrays, scale, spec, CTX)

        return str(jax.make_jaxpr(layer_of)(X, start.kernel, arrays, start.scale))

    assert program(blind) == program(layer.spec)


def test_the_tree_is_as_declared(layer):
    spec = layer.spec
    sizes = {"E": spec.num_experts, "I": IN, "O": OUT, "R": spec.rank}
    declared = {
        name: tuple(sizes.get(axis) or int(axis) for axis in axes)
        for name, axes in SHAPES.get(layer.name, E).items()
    }
    assert {name: v.shape for name, v in layer.start.factors.items()} == declared
    assert all(v.dtype == jnp.float32 for v in layer.arrays().values())
    constants = {"u": (IN, 3), "vt": (3, OUT)} if layer.name == "lora_dash" else {}
    assert {name: v.shape for name, v in layer.start.constants.items()} == constants
    assert layer.start.scale.shape == (spec.num_experts,)
    kept = 0 if spec.combine.replaces and spec.combine.layout == "kernels" else IN
    assert layer.start.kernel.shape == (kept, OUT)


def test_it_starts_as_the_pretrained_layer_or_off_it_as_documented(layer):
    y, _ = apply(layer, layer.arrays())
    wide = np.asarray(X, np.float64)
    expected = wide @ np.asarray(KERNEL, np.float64)
    if layer.name == "kasa":  # the smallest triplets are gone
        u, s, vt = np.linalg.svd(np.asarray(KERNEL, np.float64), full_matrices=False)
        kept = len(s) - layer.spec.total_rank
        expected = wide @ (u[:, :kept] * s[:kept]) @ vt[:kept]
    if layer.name in ("goat", "goat_plus"):  # right only on average over the experts
        f, scale = layer.start.factors, layer.start.scale
        mean = np.einsum(
            "EIR,ERO,E->IO", *(np.asarray(v, np.float64) for v in (f["a"], f["b"], scale))
        )
        frozen = np.asarray(layer.start.kernel, np.float64)
        assert_close(frozen + mean / layer.spec.num_experts, KERNEL, 2e-6)
        assert np.abs(np.asarray(y) - expected).max() > 1e-3, "the tokens' own weights are not 1/E"
        return
    assert_close(y, expected, 5e-6)


def test_compiled_is_eager(layer):
    y, report = apply(layer, layer.moved())
    eager, eager_report = apply(layer, layer.moved(), apply_layer)
    assert_close((y, report), (eager, eager_report), 1e-5)
    assert np.isfinite(y).all() and np.abs(y - X @ KERNEL).max() > 0.01


def test_bfloat16_models_keep_their_dtype_and_float32_factors(layer):
    """Away from the top-k ties that rounding x could turn: routing sees what both share."""
    kernel, x = jnp.asarray(KERNEL, jnp.bfloat16), jnp.asarray(X, jnp.bfloat16)
    start = START(kernel, layer.spec, jax.random.key(0), GRADIENT)
    assert start.kernel.dtype == jnp.bfloat16
    assert all(value.dtype == jnp.float32 for value in start.factors.values())
    run = partial(APPLY, arrays=layer.moved(), scale=start.scale, spec=layer.spec, ctx=CTX)
    y, _ = run(x, start.kernel)
    wide, _ = run(x.astype(jnp.float32), start.kernel.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert_close(y, wide, 2**-5)


def test_merge_is_apply_or_is_refused_with_a_reason(layer):
    arguments = (layer.start.kernel, layer.moved(), layer.start.scale, layer.spec)
    if not layer.spec.router.mergeable:
        with pytest.raises(UserError, match=r"weights the experts .*, so no single kernel equals"):
            merge_adapter(*arguments)
        return
    merged = merge_adapter(*arguments)
    assert merged.shape == (IN, OUT)
    assert_close(X @ merged, apply(layer, layer.moved())[0], 5e-6)


def as_dense(layer):
    dense = Dense(IN, OUT, rngs=nnx.Rngs(0))
    dense.kernel.set_value(layer.start.kernel)
    dense.adapter = Adapter(layer.factors, layer.start.scale, layer.spec, 0, layer.constants)
    return dense


def test_a_gradient_reaches_every_trained_leaf_and_no_other(layer):
    graph, trainable, base = split_model(as_dense(layer))
    assert set(trainable["adapter"]["adapter"]) == set(layer.start.factors)
    assert set(base["adapter"]) == {"scale", *layer.start.constants}
    assert jax.tree.leaves(trainable["head"]) == []

    @jax.jit
    @jax.grad
    def slope(trainable):
        y, sown = run_model(merge_model(graph, trainable, base), X, CTX)
        aux = sown["adapter"]["report"][0].aux_loss
        return jnp.square(y - TARGET).mean() + layer.spec.aux_weight * aux

    for name, gradient in slope(trainable)["adapter"]["adapter"].items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-6, name


STOPPED = {"dora": ("a", "b")}
"""Leaves whose gradient is by design not the derivative: the column length is held fixed."""


def test_gradients_are_the_derivatives(layer):
    """Central differences in float64, along random directions of every leaf and of x."""
    spec, step = layer.spec, 1e-5
    with jax.enable_x64(), jax.numpy_dtype_promotion("standard"):
        to64 = partial(jax.tree.map, lambda v: jnp.asarray(np.asarray(v, np.float64)))
        kernel, constants, scale, target = to64(
            (layer.start.kernel, layer.constants, layer.start.scale, TARGET)
        )
        at = to64({**layer.factors, "x": X})

        @jax.jit
        @jax.value_and_grad
        def loss(at):
            arrays = {name: value for name, value in at.items() if name != "x"} | constants
            y, report = apply_layer(at["x"], kernel, arrays, scale, spec, CTX)
            return jnp.square(y - target).mean() + spec.aux_weight * report.aux_loss

        _, gradient = loss(at)
        rng = np.random.default_rng(0)
        for name, value in at.items():
            if name in STOPPED.get(layer.name, ()):
                continue
            along = rng.normal(size=value.shape)
            ahead, behind = (loss({**at, name: value + s * along})[0] for s in (step, -step))
            slope = (ahead - behind) / (2 * step)
            size = float(np.linalg.norm(gradient[name]) * np.linalg.norm(along))
            got = (np.asarray(gradient[name]) * along).sum()
            np.testing.assert_allclose(got, slope, rtol=1e-6, atol=1e-7 * size, err_msg=name)


def test_a_checkpoint_gives_the_same_bits_back(layer, tmp_path):
    _, trainable, _ = split_model(as_dense(layer))
    tree = trainable["adapter"]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", tree)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        back = checkpointer.restore(tmp_path / "state", abstract)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


MODELS = {
    "encoder": lambda: Encoder(tiny_config(num_layers=2), rngs=nnx.Rngs(0)),
    "decoder": lambda: Decoder(tiny_decoder_config(), rngs=nnx.Rngs(0)),
}
TARGETS = {"encoder": r".*\d\.output\.dense", "decoder": ["down_proj"]}
IDS = np.random.default_rng(0).integers(3, 60, size=(BATCH, 6))
MASK = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 6])
STEPS = 6
RATE = {"full": 2e-4, "full_moe": 2e-4}
"""Learning rate of the methods that move the whole model; 2e-3 for all others."""
NEAR = {"kasa": 1.0, "goat": 1.0, "goat_plus": 1.0}
"""Largest distance of the first output from the pretrained model's; these methods start off it."""
ASLEEP = {"lora_dash": {"coefficients"}}
"""Leaves that do not move yet: these wait for the switch."""


@pytest.fixture(scope="module")
def bases():
    return {kind: make() for kind, make in MODELS.items()}


@pytest.fixture(scope="module")
def outputs_before(bases):
    return {kind: nnx.jit(lambda model: model(IDS, MASK))(model) for kind, model in bases.items()}


def with_adapters(name, base, kind):
    model = nnx.clone(base)
    gradients = {
        n: random(*site.module.kernel.shape[-2:], seed=number)
        for number, site in enumerate(find_modules(model))
        for n in site.names()
    }
    inject(model, small(name), TARGETS[kind], key=jax.random.key(1), gradients=gradients)
    return model


def make_step(model, graph, spec, goal, rate):
    """Loss and outputs, and every leaf moved by its largest gradient times the rate."""
    ctx = dataclasses.replace(CTX, mask=MASK)
    # KaSA's own weight, 1, goes with beta and gamma; here its norms would drown the task.
    aux_weight = min(spec.aux_weight, 1e-3)

    def loss_of(trainable, base):
        y, sown = run_model(merge_model(graph, trainable, base), IDS, MASK, None, ctx)
        reports = reports_by_name(model, sown).values()
        aux = sum(report.aux_loss.sum() for report in reports)
        return jnp.square(y - goal).mean() + aux_weight * aux, y

    def move(value, gradient):
        largest = jnp.abs(gradient).max()
        return value - rate * gradient / jnp.where(largest == 0, 1.0, largest)

    @jax.jit
    def step(trainable, base):
        (loss, y), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable, base)
        return jax.tree.map(move, trainable, grads), loss, y

    return step


def parts_in_a_model(case):
    """Every router and balance loss in an encoder; in both, what a model's layers make of them.

    The other parts are those of the layers above.
    """
    name, kind = case
    spec = METHODS[name].spec
    layers = [(kind, spec.router.mergeable), (kind, spec.combine.replaces, spec.combine.layout)]
    return layers + (kinds_of_parts(name, ("router", "aux_loss")) if kind == "encoder" else [])


CASES = [(name, kind) for kind in MODELS for name in METHODS]
QUICK = [("lora", "encoder"), ("goat", "encoder")]


@pytest.mark.slow
@pytest.mark.parametrize("case", first_of_each(CASES, parts_in_a_model, QUICK), ids="-".join)
def test_a_model_starts_and_learns_in_one_trace(case, bases, outputs_before):
    name, kind = case
    model, before = with_adapters(name, bases[kind], kind), outputs_before[kind]
    graph, trainable, base = split_model(model)
    goal = before + 0.3 * random(*before.shape, seed=5)
    step = make_step(model, graph, small(name), goal, RATE.get(name, 2e-3))
    state, losses, outputs = trainable, [], []
    for _ in range(STEPS):
        state, loss, y = step(state, base)
        losses.append(float(loss))
        outputs.append(y)
    assert compiled(step) == 1
    assert_close(outputs[0], before, NEAR.get(name, 2e-5))
    assert (np.diff(losses) < 0).all(), losses
    moved = jax.tree.map(lambda old, new: float(jnp.abs(new - old).max()), trainable, state)
    for path, distance in jax.tree_util.tree_leaves_with_path(moved):
        leaf = path[-1].key
        assert (distance > 0) == (leaf not in ASLEEP.get(name, set())), leaf


NUMBERS = [
    (name, part, field.name)
    for name, method in METHODS.items()
    for part in PARTS_OF_A_LAYER
    for field in dataclasses.fields(getattr(method.spec, part))
    if isinstance(getattr(getattr(method.spec, part), field.name), int | float | None)
]


@pytest.mark.parametrize(("name", "part", "option"), NUMBERS, ids=lambda value: value)
def test_wrong_numbers_of_an_option_are_refused_and_the_rest_starts_finite(name, part, option):
    for wrong in (float("nan"), float("inf"), "2", {"a": 2.0}):
        with pytest.raises(UserError, match=option):
            small(name).replace(**{option: wrong})
    for unusual in (-1, 0, 1e30, 10**400):
        try:
            spec = small(name).replace(**{option: unusual})
        except UserError as error:
            assert "\n" not in str(error)
        else:
            segments = spec.initializer.decompose(KERNEL, spec, jax.random.key(0))
            scale = spec.scale(IN, segments, spec)
            assert np.isfinite(scale).all()
