"""Injection: which modules, with which sizes, counted how, and that nothing else changes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from goat_jax.adapters.adapter import init_adapter
from goat_jax.adapters.context import EVAL
from goat_jax.adapters.methods import method_spec
from goat_jax.errors import UserError
from goat_jax.injection.inject import inject
from goat_jax.injection.selection import Override
from goat_jax.models.decoder.config import tiny_decoder_config
from goat_jax.models.decoder.model import Decoder
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.models.vision.config import tiny_vision_config
from goat_jax.models.vision.model import VisionModel
from goat_jax.nn.dense import Dense, Factor, Head, split_model
from goat_jax.nn.modules import Embedding, PatchEmbedding
from goat_jax.nn.named_modules import find_modules, name_number
from goat_jax.testing import TinyModel, assert_close
from tiers import each

LAYERS, WIDTH = 4, 8
KEY = jax.random.key(7)
LORA = method_spec("lora", total_rank=4)
GOAT = method_spec("goat", total_rank=4, num_experts=2, top_k=1)
QUERY, UP, DOWN, HEAD = (
    "model.layers.{}.attention.query",
    "model.layers.{}.mlp.up",
    "model.layers.{}.mlp.down",
    "classifier",
)


def make_model():
    return TinyModel(layers=LAYERS, width=WIDTH, inner=WIDTH)


def dry_run(spec, *args, **options):
    """The report and the shapes of an injection, without computing anything."""
    found = {}

    def build():
        model = make_model()
        found["report"] = inject(model, spec, *args, key=KEY, **options)
        return model

    model = nnx.eval_shape(build)
    return found["report"], model


def summary(report):
    """Pattern and layers -> what became of the module."""
    return {(row.name, row.layers and tuple(row.layers)): row.what for row in report.rows}


def adapted(report):
    return [row.name for row in report.rows if row.what == "adapter"]


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        (["query"], [QUERY]),
        (["mlp.up", "down"], [UP, DOWN]),
        (r".*mlp\..*", [UP, DOWN]),
        (r".*\.(query|up)", [QUERY, UP]),
    ],
)
def test_targets(target_modules, expected):
    report, model = dry_run(LORA, target_modules)
    assert adapted(report) == expected
    has = [site.pattern for site in find_modules(model) if site.module.adapter is not None]
    assert has == expected


def test_all_linear_takes_what_is_not_trained_in_full_and_wide_enough():
    report, model = dry_run(LORA, modules_to_save=["classifier"])
    layers = tuple(range(LAYERS))
    assert summary(report) == {
        (QUERY, layers): "adapter",
        (UP, layers): "adapter",
        (DOWN, layers): "adapter",
        (HEAD, None): "trained in full",
    }
    assert model.head.adapter is None
    assert isinstance(model.head.kernel, Head) and isinstance(model.head.bias, Head)


def test_rows_say_why_a_module_stays_frozen():
    report, _ = dry_run(LORA, ["query", "classifier"])
    reasons = {row.name: (row.what, row.reason) for row in report.rows}
    assert reasons[QUERY] == ("adapter", "")
    assert reasons[UP] == ("frozen", "not a target")
    assert reasons[HEAD] == ("frozen", "total rank 4 is above its smaller side 2")


def test_counts():
    report, model = dry_run(GOAT, ["query", "up"], modules_to_save=["classifier"])
    per_module = 2 * WIDTH * 4 + WIDTH * 2
    trained = {row.name: row.trained for row in report.rows}
    head = WIDTH * 2 + 2
    assert trained == {QUERY: LAYERS * per_module, UP: LAYERS * per_module, DOWN: 0, HEAD: head}
    assert report.adapter_parameters == 2 * LAYERS * per_module
    assert report.head_parameters == head
    assert report.trained_parameters == report.adapter_parameters + head
    pretrained = LAYERS * 3 * (WIDTH * WIDTH + WIDTH) + head
    assert report.total_parameters == report.adapter_parameters + pretrained
    sizes = jax.tree.leaves(jax.tree.map(lambda a: a.size, nnx.state(model, Factor)))
    assert sum(sizes) == report.adapter_parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_modules": ["quary"]},
            "target 'quary' matches no linear layer (did you mean 'query'?)",
        ),
        (
            {"target_modules": ["query", "gate"]},
            "target 'gate' matches no linear layer: their names end in ",
        ),
        ({"target_modules": r".*\.gate"}, "target '.*\\\\.gate' matches no linear layer"),
        (
            {"target_modules": "query"},
            "as a regular expression over full names (did you mean '[\"query\"]'?)",
        ),
        (
            {"target_modules": "*query"},
            "target '*query' is not a regular expression: nothing to repeat",
        ),
        (
            {"modules_to_save": ["clasifier"]},
            "module to train 'clasifier' matches no module (did you",
        ),
        ({"overrides": [Override(("q",), {})]}, "override 'q' matches no linear layer"),
        (
            {"target_modules": ["classifier"]},
            "no module could be adapted: not a target; total rank 4 is above its smaller side 2",
        ),
        (
            {"overrides": [Override(("up",), {"num_experts": 3})]},
            "total rank 4 is not divisible by 3 experts",
        ),
        ({"overrides": [Override(("up",), {"ranc": 3})]}, "no option 'ranc'"),
        (
            {"overrides": [Override(("up",), {"aux_weight": 0.5})]},
            "an override of ['up'] changes aux_weight, which applies to the whole run",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(options, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        dry_run(LORA, **options)
    assert "\n" not in str(raised.value)


def test_a_second_adapter_at_the_same_place_is_refused():
    def build():
        model = make_model()
        inject(model, LORA, ["query"], key=KEY)
        inject(model, LORA, ["up"], key=KEY)
        inject(model, LORA, ["query"], key=KEY)

    with pytest.raises(UserError, match=r"model.layers.0.attention.query has an adapter already"):
        jax.eval_shape(build)


def test_overrides_by_projection_and_the_first_that_matches_wins():
    _report, model = dry_run(
        GOAT,
        overrides=[
            Override(("up",), {"total_rank": 2}),
            Override(
                r".*mlp\..*", {"total_rank": 8, "segments": "minor", "scale": "alpha_over_rank"}
            ),
        ],
    )
    run = model.layers.runs[0]
    ranks = {name: getattr(run, name).adapter.spec.total_rank for name in ("query", "up", "down")}
    assert ranks == {"query": 4, "up": 2, "down": 8}
    assert len(model.layers.runs) == 1, "layers are equal: nothing to cut"
    assert run.down.adapter.a.shape == (LAYERS, 2, WIDTH, 4)
    assert run.down.adapter.spec.initializer.segments.__name__ == "minor"


def test_overrides_by_range_cut_the_stack():
    report, model = dry_run(
        GOAT,
        overrides=[Override(r".*layers\.[12]\..*query", {"num_experts": 4, "total_rank": 8})],
        modules_to_save=[],
    )
    assert model.layers.ranges() == [range(0, 1), range(1, 3), range(3, 4)]
    ranks = [run.query.adapter.spec.total_rank for run in model.layers.runs]
    experts = [run.query.adapter.router.shape for run in model.layers.runs]
    assert ranks == [4, 8, 4]
    assert experts == [(1, WIDTH, 2), (2, WIDTH, 4), (1, WIDTH, 2)]
    assert [row.layers for row in report.rows if row.name == QUERY] == model.layers.ranges()


def test_targets_and_trained_modules_by_range_cut_the_stack():
    report, model = dry_run(LORA, r".*layers\.[01]\..*", modules_to_save=r".*layers\.3\..*up")
    found = summary(report)
    assert model.layers.ranges() == [range(0, 2), range(2, 3), range(3, 4)]
    assert [found[UP, rows] for rows in ((0, 1), (2,), (3,))] == [
        "adapter",
        "frozen",
        "trained in full",
    ]
    assert found[QUERY, (3,)] == "frozen"
    assert isinstance(model.layers.runs[2].up.kernel, Head)


def arrays_of(model, name):
    """Kernel, factors and scale of a module, runs together."""
    parts = []
    for run in model.layers.runs:
        dense = getattr(run, name)
        parts.append(
            dense.adapter.factors()
            | {"kernel": dense.kernel[...], "scale": dense.adapter.scale[...]}
        )
    return {k: np.concatenate([np.asarray(part[k]) for part in parts]) for k in parts[0]}


@pytest.fixture(scope="module")
def plain():
    """The model with GOAT everywhere in its blocks."""
    model = make_model()
    inject(model, GOAT, ["query", "up", "down"], key=KEY)
    return model


@pytest.mark.slow
def test_every_layer_is_the_start_of_its_own_kernel(plain):
    kernels = np.asarray(make_model().layers.runs[0].up.kernel[...])
    found = arrays_of(plain, "up")
    start = jax.jit(lambda kernel, key: init_adapter(kernel, GOAT, key))
    for layer in range(LAYERS):
        key = jax.random.fold_in(KEY, name_number(UP.format(layer)))
        expected = start(kernels[layer], key)
        own = {name: array[layer] for name, array in found.items()}
        assert_close({n: own[n] for n in ("a", "b", "router")}, expected.factors)
        assert_close(own["kernel"], expected.kernel)
        assert_close(own["scale"], expected.scale)
    assert len(np.unique(found["router"][:, 0, 0])) == LAYERS


@pytest.mark.slow
def test_a_cut_stack_has_the_same_adapters_and_computes_the_same(plain):
    """GOAT does not read alpha: the override cuts the stack and changes nothing else."""
    cut = make_model()
    overrides = [Override(r".*layers\.[12]\..*up", {"alpha": 99.0})]
    inject(cut, GOAT, ["query", "up", "down"], key=KEY, overrides=overrides)
    assert len(cut.layers.runs) == 3
    for name in ("query", "up"):
        assert_close(arrays_of(cut, name), arrays_of(plain, name), 1e-6)
    x = np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype(np.float32)
    outputs = [jax.jit(lambda x, model=model: model(x, EVAL))(x) for model in (plain, cut)]
    assert_close(*outputs)


def test_an_adapter_depends_on_the_key_and_its_name_only(plain):
    """Not on what else is adapted, nor on the kernel's neighbours, nor on the process."""
    alone, other = make_model(), make_model()
    inject(alone, GOAT, ["up"], key=KEY)
    inject(other, GOAT, ["up"], key=jax.random.key(8))
    jax.tree.map(np.testing.assert_array_equal, arrays_of(alone, "up"), arrays_of(plain, "up"))
    routers = [arrays_of(model, "up")["router"] for model in (alone, other)]
    assert np.abs(routers[0] - routers[1]).max() > 1e-2
    assert np.abs(arrays_of(plain, "query")["router"] - routers[0]).max() > 1e-2
    # CRC-32 of "abc", which unlike hash() is the same in every process.
    assert name_number("abc") == 0x352441C2


def test_what_is_not_adapted_is_not_touched(plain):
    fresh = make_model()
    for name in ("up", "down"):
        before, after = (getattr(m.layers.runs[0], name) for m in (fresh, plain))
        np.testing.assert_array_equal(before.bias[...], after.bias[...])
        change = np.abs(np.asarray(before.kernel[...]) - np.asarray(after.kernel[...]))
        assert change.max((1, 2)).min() > 1e-3, "GOAT takes its start off every layer's kernel"
    np.testing.assert_array_equal(fresh.head.kernel[...], plain.head.kernel[...])
    lora = make_model()
    inject(lora, LORA, ["up"], key=KEY)
    for name in ("up", "down"):
        kernels = [getattr(m.layers.runs[0], name).kernel[...] for m in (fresh, lora)]
        np.testing.assert_array_equal(*kernels)
    x = jnp.ones((1, 2, WIDTH))
    np.testing.assert_array_equal(lora(x), fresh(x))


@pytest.mark.slow
def test_full_fine_tuning_trains_every_parameter_of_the_model():
    model = Encoder(tiny_config(), rngs=nnx.Rngs(0))
    before = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    report = inject(model, method_spec("full"), ["query"], key=KEY)
    assert report.trained_parameters == sum(leaf.size for leaf in before)
    assert {row.what for row in report.rows} == {"adapter", "trained in full"}
    _, trainable, base = split_model(model)
    left = {path[-1].key: leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(base)}
    assert left == {"kernel": 0, "scale": tiny_config().num_layers}  # what no adapter reads
    after = jax.tree.leaves(trainable)
    assert sum(float(np.square(leaf).sum()) for leaf in after) == pytest.approx(
        sum(float(np.square(leaf).sum()) for leaf in before), rel=1e-6
    )
    targets_alone = inject(
        Encoder(tiny_config(), rngs=nnx.Rngs(0)),
        method_spec("full", whole_model=False),
        ["query"],
        key=KEY,
    )
    assert targets_alone.trained_parameters == 3 * 32 * 32


def test_the_kernel_under_an_adapter_stays_frozen_when_the_rest_is_trained():
    model = Encoder(tiny_config(), rngs=nnx.Rngs(0))
    inject(model, method_spec("goat", total_rank=8, whole_model=True), ["query"], key=KEY)
    _, trainable, base = split_model(model)
    kept = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(base)}
    assert kept == {"kernel", "scale"}
    assert sum(leaf.size for leaf in jax.tree.leaves(base)) == 3 * (32 * 32 + 8)
    assert trainable["head"]["layers"]["runs"][0]["query"].keys() == {"bias"}


MODELS = {
    "encoder": lambda: Encoder(tiny_config(), rngs=nnx.Rngs(0)),
    "decoder": lambda: Decoder(tiny_decoder_config(), rngs=nnx.Rngs(0)),
    "vision": lambda: VisionModel(tiny_vision_config(), rngs=nnx.Rngs(0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", each(MODELS, ["encoder"]))
def test_a_model_that_is_trained_in_full_computes_in_the_dtype_it_had(kind):
    """Computed in float32 from bfloat16's numbers, it would give other bits."""
    model = MODELS[kind]()
    for site in find_modules(model, (Dense, Embedding, PatchEmbedding)):
        for value in vars(site.module).values():
            if isinstance(value, nnx.Param):
                value.set_value(value[...].astype(jnp.bfloat16))
    random = np.random.default_rng(0)
    if kind == "vision":
        inputs = (random.normal(size=(2, 16, 16, 3)).astype(np.float32),)
    else:
        inputs = (random.integers(1, 60, size=(2, 6)), np.ones((2, 6), np.int32))
    run = nnx.jit(lambda model: model(*inputs))
    before = run(model)
    inject(model, method_spec("full"), key=KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, Head))} == {
        jnp.dtype("float32")
    }
    np.testing.assert_array_equal(run(model), before)
