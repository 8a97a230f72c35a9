"""Names of modules, in and out of stacks, and the reports found under them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from goat_jax.adapters.adapter import Report
from goat_jax.adapters.context import EVAL
from goat_jax.adapters.methods import method_spec
from goat_jax.nn.dense import Adapter, Dense, run_model
from goat_jax.nn.named_modules import adapted_names, find_modules, find_stacks, reports_by_name
from goat_jax.nn.stack import Stack
from goat_jax.testing import TinyBlock, TinyModel

WIDTH = 8
X = np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype(np.float32)


def dense():
    return Dense(WIDTH, WIDTH, rngs=nnx.Rngs(0))


def attach(module, layers, experts, top_k=1, seed=0):
    """A random adapter; `layers` is None outside a stack."""
    spec = method_spec("molora", total_rank=experts, num_experts=experts, top_k=top_k)
    rng = np.random.default_rng(seed)
    lead = () if layers is None else (layers,)
    shapes = {"a": (experts, WIDTH, 1), "b": (experts, 1, WIDTH), "router": (WIDTH, experts)}
    factors = {n: rng.normal(size=lead + s).astype(np.float32) for n, s in shapes.items()}
    factors = {name: jnp.asarray(array) for name, array in factors.items()}
    scale = jnp.asarray(np.ones((*lead, experts), np.float32))
    module.adapter = Adapter(factors, scale, spec, salt=seed)


@pytest.fixture
def tiny():
    return TinyModel(layers=3, width=WIDTH, inner=WIDTH)


def test_names_come_from_the_model_in_its_order(tiny):
    sites = find_modules(tiny)
    assert [site.pattern for site in sites] == list(tiny.hf_names().values())
    assert sites[0].names() == [f"model.layers.{i}.attention.query" for i in range(3)]
    assert sites[3].names() == ["classifier"] and sites[3].layers is None
    assert sites[0].module is tiny.layers.runs[0].query
    assert find_stacks(tiny) == [tiny.layers]


def test_a_cut_stack_has_a_site_per_run_under_one_pattern(tiny):
    tiny.layers.cut([1])
    sites = [site for site in find_modules(tiny) if site.pattern.endswith("up")]
    assert [site.layers for site in sites] == [range(0, 1), range(1, 3)]
    names = [name for site in sites for name in site.names()]
    assert names == [f"model.layers.{i}.mlp.up" for i in range(3)]


class Tower(nnx.Module):
    def __init__(self):
        self.blocks = Stack(lambda r: TinyBlock(WIDTH, WIDTH, rngs=r), 2, rngs=nnx.Rngs(0))


class Towers(nnx.Module):
    """Two stacks, one of them a level deeper, beside a layer of their own."""

    def __init__(self):
        self.vision = Tower()
        self.text = Stack(lambda r: Dense(WIDTH, WIDTH, rngs=r), 3, rngs=nnx.Rngs(0))
        self.out = dense()

    def __call__(self, x, ctx=EVAL):
        return self.out(self.text(self.vision.blocks(x, ctx), ctx), ctx)


def test_without_a_table_the_path_is_the_name_and_the_number_follows_the_stack():
    sites = find_modules(Towers())
    names = {name for site in sites for name in site.names()}
    assert {site.pattern for site in sites} == {
        "out",
        "text.{}",
        "vision.blocks.{}.query",
        "vision.blocks.{}.up",
        "vision.blocks.{}.down",
    }
    assert {"text.2", "vision.blocks.1.up"} <= names


def test_any_kind_of_module_can_be_looked_for():
    assert len(find_modules(Towers(), Stack)) == 2
    assert len(find_modules(Towers(), (Stack, Dense))) == 7


def run_jitted(model, x):
    """Returns the reports of `run_model` from inside jit."""
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x: run_model(nnx.merge(graph, state), x)[1])(state, x)


@pytest.mark.slow
def test_reports_of_several_stacks():
    model = Towers()
    attach(model.vision.blocks.runs[0].down, 2, experts=4, seed=1)
    attach(model.text.runs[0], 3, experts=2, seed=2)
    attach(model.out, None, experts=3, seed=3)
    layers = {
        "vision.blocks.{}.down": ["vision.blocks.0.down", "vision.blocks.1.down"],
        "text.{}": ["text.0", "text.1", "text.2"],
        "out": ["out"],
    }
    experts = {"vision.blocks.{}.down": 4, "text.{}": 2, "out": 3}
    assert adapted_names(model) == layers
    reports = reports_by_name(model, run_jitted(model, X))
    assert reports.keys() == layers.keys()
    for name, report in reports.items():
        assert report.load.shape == (len(layers[name]), experts[name])
        assert report.aux_loss.shape == report.entropy.shape == (len(layers[name]),)
        np.testing.assert_allclose(np.asarray(report.load).sum(1), 1.0, rtol=1e-6)


@pytest.mark.slow
def test_reports_come_in_the_order_of_layers_not_of_the_names_of_runs():
    """Eleven runs, by name "0", "1", "10", ...; run i reports the number i."""
    model = TinyModel(layers=11, width=WIDTH, inner=WIDTH)
    model.layers.cut(range(11))
    sown = {"layers": {}}
    for i, run in enumerate(model.layers.runs):
        attach(run.up, 1, experts=2)
        one = jnp.full(1, i)
        load = jnp.full((1, 2), i)
        report = Report(aux_loss=one, load=load, entropy=one)
        sown["layers"][f"run_{i}"] = [{"up": {"adapter": {"report": [report]}}}]
    found = reports_by_name(model, sown)["model.layers.{}.mlp.up"]
    np.testing.assert_array_equal(found.entropy, range(11))
    np.testing.assert_array_equal(found.load[:, 1], range(11))
    pattern = "model.layers.{}.mlp.up"
    assert adapted_names(model) == {pattern: [pattern.format(layer) for layer in range(11)]}


def test_runs_without_an_adapter_are_left_out_and_fewer_experts_are_padded(tiny):
    tiny.layers.cut([1, 2])
    attach(tiny.layers.runs[0].query, 1, experts=2)
    attach(tiny.layers.runs[2].query, 1, experts=4, top_k=2)
    reports = reports_by_name(tiny, run_jitted(tiny, X))
    pattern = "model.layers.{}.attention.query"
    assert adapted_names(tiny) == {pattern: [pattern.format(0), pattern.format(2)]}
    load = np.asarray(reports[pattern].load)
    assert load.shape == (2, 4) and not load[0, 2:].any()
    np.testing.assert_allclose(load.sum(1), [1, 2], rtol=1e-6)
