"""Names of modules, in and out of stacks, and the reports found under them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from goat_jax.adapters.context import EVAL
from goat_jax.adapters.methods import method_spec
from goat_jax.layers import Adapter, Dense, run_model
from goat_jax.sites import adapted_layers, find_sites, find_stacks, reports_by_name
from goat_jax.stack import Stack
from goat_jax.testing import TinyBlock, TinyModel, assert_close

WIDTH = 8
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, WIDTH)), jnp.float32)


def dense():
    return Dense(WIDTH, WIDTH, rngs=nnx.Rngs(0))


def attach(module, layers, experts, top_k=1, seed=0):
    """A random adapter; `layers` is None outside a stack."""
    spec = method_spec("molora", total_rank=experts, num_experts=experts, top_k=top_k)
    rng = np.random.default_rng(seed)
    lead = () if layers is None else (layers,)
    shapes = {"a": (experts, WIDTH, 1), "b": (experts, 1, WIDTH), "router": (WIDTH, experts)}
    factors = {n: jnp.asarray(rng.normal(size=lead + s), jnp.float32) for n, s in shapes.items()}
    module.adapter = Adapter(factors, jnp.ones((*lead, experts)), spec, salt=seed)


@pytest.fixture
def tiny():
    return TinyModel(layers=3, width=WIDTH, inner=WIDTH)


def test_names_come_from_the_model_in_its_order(tiny):
    sites = find_sites(tiny)
    assert [site.pattern for site in sites] == list(tiny.hf_names().values())
    assert sites[0].names() == [f"model.layers.{i}.attention.query" for i in range(3)]
    assert sites[3].names() == ["classifier"] and sites[3].layers is None
    assert sites[0].module is tiny.layers.runs[0].query
    assert find_stacks(tiny) == [tiny.layers]


def test_a_cut_stack_has_a_site_per_run_under_one_pattern(tiny):
    tiny.layers.cut([1])
    sites = [site for site in find_sites(tiny) if site.pattern.endswith("up")]
    assert [site.layers for site in sites] == [range(0, 1), range(1, 3)]
    assert sum((site.names() for site in sites), []) == [f"model.layers.{i}.mlp.up" for i in (0, 1, 2)]


class Towers(nnx.Module):
    """Two stacks, one of them a level deeper, beside a layer of their own."""

    def __init__(self):
        self.vision = nnx.Module()
        self.vision.blocks = Stack(
            lambda r: TinyBlock(WIDTH, WIDTH, rngs=r), 2, rngs=nnx.Rngs(0)
        )
        self.text = Stack(lambda r: Dense(WIDTH, WIDTH, rngs=r), 3, rngs=nnx.Rngs(0))
        self.out = dense()

    def __call__(self, x, ctx=EVAL):
        return self.out(self.text(self.vision.blocks(x, ctx), ctx), ctx)


def test_without_a_table_the_path_is_the_name_and_the_number_follows_the_stack():
    sites = find_sites(Towers())
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
    assert len(find_sites(Towers(), Stack)) == 2
    assert len(find_sites(Towers(), (Stack, Dense))) == 7


def test_reports_of_several_stacks():
    model = Towers()
    attach(model.vision.blocks.runs[0].down, 2, experts=4, seed=1)
    attach(model.text.runs[0], 3, experts=2, seed=2)
    attach(model.out, None, experts=3, seed=3)
    _, sown = run_model(model, X)
    reports = reports_by_name(model, sown)
    shapes = {name: report.load.shape for name, report in reports.items()}
    assert shapes == {"vision.blocks.{}.down": (2, 4), "text.{}": (3, 2), "out": (1, 3)}
    assert all(report.aux_loss.shape == report.entropy.shape == report.load.shape[:1]
               for report in reports.values())  # fmt: skip
    layers = {"vision.blocks.{}.down": [0, 1], "text.{}": [0, 1, 2], "out": [0]}
    assert adapted_layers(model) == layers


def test_reports_do_not_depend_on_how_the_stack_is_cut():
    """Thirteen runs: they must come back in the order of numbers, not of their names."""

    def reports(starts):
        model = TinyModel(layers=13, width=WIDTH, inner=WIDTH)
        attach(model.layers.runs[0].up, 13, experts=4, top_k=2)
        model.layers.cut(starts)
        _, sown = run_model(model, X)
        return reports_by_name(model, sown), adapted_layers(model)

    (whole, layers), (pieces, layers_of_pieces) = reports([]), reports(range(13))
    assert layers == layers_of_pieces == {"model.layers.{}.mlp.up": list(range(13))}
    assert_close(pieces, whole, 1e-6)
    entropy = np.asarray(whole["model.layers.{}.mlp.up"].entropy)
    assert len(np.unique(entropy)) == 13, "equal layers would hide a wrong order"


def test_runs_without_an_adapter_are_left_out_and_fewer_experts_are_padded(tiny):
    tiny.layers.cut([1, 2])
    attach(tiny.layers.runs[0].query, 1, experts=2)
    attach(tiny.layers.runs[2].query, 1, experts=4, top_k=2)
    _, sown = run_model(tiny, X)
    reports = reports_by_name(tiny, sown)
    assert adapted_layers(tiny) == {"model.layers.{}.attention.query": [0, 2]}
    load = np.asarray(reports["model.layers.{}.attention.query"].load)
    assert load.shape == (2, 4) and not load[0, 2:].any()
    np.testing.assert_allclose(load.sum(1), [1, 2], rtol=1e-6)


def test_a_jitted_model_reports_too(tiny):
    attach(tiny.layers.runs[0].up, 3, experts=2)
    _, expected = run_model(tiny, X)
    graph, state = nnx.split(tiny)
    _, sown = jax.jit(lambda state, x: run_model(nnx.merge(graph, state), x))(state, X)
    assert_close(reports_by_name(tiny, sown), reports_by_name(tiny, expected), 1e-6)
