"""Shardings of arrays on a mesh, and the refusal of sizes that do not fit one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from goat_jax.adapters.methods import METHODS, method_spec
from goat_jax.config.fields import config_from_json, flatten
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.injection.inject import inject
from goat_jax.injection.map_layers import map_layers
from goat_jax.models.decoder.model import Decoder, tiny_decoder_config
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.nn.dense import Adapter, Dense, split_model
from goat_jax.nn.named_modules import find_modules
from goat_jax.optim.optimizer import OptimizerConfig, make_optimizer
from goat_jax.sharding.batches import local_rows, put_batch, put_whole_batch, share_of_rows
from goat_jax.sharding.config import MeshConfig, Rules
from goat_jax.sharding.rules import ShardingRules, make_sharding_rules, place_model
from goat_jax.training.shardings import check_batches, plan_shardings
from kinds import expect
from tiers import each

KEY = jax.random.key(0)
WIDE = {"hidden_size": 64, "intermediate_size": 96}


def placement(*sizes, rules=None) -> ShardingRules:
    found = make_sharding_rules(MeshConfig(*sizes, rules=rules or Rules()))
    assert found is not None
    return found


def site_of(model, part):
    return next(site for site in find_modules(model) if site.path[-1] == part)


def abstract_decoder(**sizes):
    return nnx.eval_shape(lambda: Decoder(tiny_decoder_config(**sizes), rngs=nnx.Rngs(0)))


def test_kernels_are_cut_by_the_side_they_face():
    model, place = abstract_decoder(), placement(2, 2, 2)
    specs = {p: place.parameter(site_of(model, p), "kernel").spec for p in ("query", "up", "down")}
    inward, outward = P(None, ("fsdp",), ("tensor",)), P(None, ("tensor",), ("fsdp",))
    assert specs == {"query": inward, "up": inward, "down": outward}
    assert place.adapter(site_of(model, "up"), "a", (2, 4, 32, 2)).spec == P(None, None, ("fsdp",))
    assert place.adapter(site_of(model, "up"), "b", (2, 4, 2, 48)).spec == P(
        None, None, None, ("tensor",)
    )
    large = place.adapter(site_of(model, "up"), "b", (32, 8, 4, 11008)).spec
    assert large == P(None, None, None, ("tensor", "fsdp"))
    assert place.adapter(site_of(model, "up"), "router", (2, 32, 4)).spec == P()
    large = place.adapter(site_of(model, "up"), "router", (32, 4096, 8)).spec
    assert large == P(None, ("fsdp",))


def test_adapters_are_gathered_over_the_axes_of_the_rows_where_they_are_used():
    model, place = abstract_decoder(), placement(2, 2, 2)
    up, shape = site_of(model, "up"), (32, 8, 4, 11008)
    assert place.adapter(up, "b", shape).spec == P(None, None, None, ("tensor", "fsdp"))
    assert place.adapter_in_use(up, "b", shape).spec == P(None, None, None, ("tensor",))
    assert place.adapter_in_use(up, "a", (32, 8, 4096, 4)).spec == P(None, None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", each(METHODS, ["lora", "goat"]))
def test_nothing_large_is_whole_and_the_optimizer_follows(name):
    """Every array with an axis as long as a kernel's side is cut, but for gates (I, E)."""
    model = Encoder(tiny_config(num_layers=2, **WIDE), rngs=nnx.Rngs(0))
    spec = METHODS[name].spec
    place = placement(1, 4, 2)

    def build():
        fresh = nnx.clone(model)
        gradients = {
            n: jnp.ones(site.module.kernel.shape[-2:])
            for site in find_modules(fresh)
            for n in site.names()
        }
        inject(fresh, spec, ["query", "0.output.dense"], key=KEY, gradients=gradients)
        return fresh

    fresh = nnx.eval_shape(build)
    _, trainable, base = split_model(fresh)
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0), 10)
    shardings = plan_shardings(fresh, place, trainable, base, optimizer, KEY, {})
    sides = (64, 96)
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainable["adapter"]):
        long = [size for size in leaf.shape[1:] if size in sides]
        sharding = jax.tree_util.tree_leaves_with_path(shardings.state.trainable["adapter"])
        cut = dict(sharding)[path]
        small = path[-1].key in ("router", "threshold", "task_gate", "task_embedding")
        if long and not small:
            parts = np.prod(leaf.shape) // np.prod(cut.shard_shape(leaf.shape))
            assert parts >= (2 if len(long) == 1 else 8), (path, leaf.shape, cut)
    flat = dict(jax.tree_util.tree_leaves_with_path(shardings.state.trainable))
    moments = jax.tree_util.tree_leaves_with_path(shardings.state.opt_state)
    for path, sharding in flat.items():
        own = [s for p, s in moments if p[-len(path) :] == path]
        assert len(own) == 2 and all(s == sharding for s in own), path


def test_a_vocabulary_that_does_not_divide_hands_its_devices_to_the_features():
    model = nnx.eval_shape(lambda: Encoder(tiny_config(vocab_size=101), rngs=nnx.Rngs(0)))
    from goat_jax.nn.modules import Embedding

    words = next(s for s in find_modules(model, Embedding) if s.path[-1] == "words")
    assert placement(1, 4, 2).parameter(words, "table").spec == P(None, ("fsdp", "tensor"))


def test_tokens_are_cut_and_their_devices_share_the_parameters():
    assert placement(2, 2, 2).activations.spec == P(("data", "fsdp"))
    long, up = placement(2, 1, 2, 2), site_of(abstract_decoder(), "up")
    assert long.activations.spec == P("data", "sequence") and long.token_parts == 2
    assert long.parameter(up, "kernel").spec == P(None, "sequence", "tensor")
    assert long.adapter_in_use(up, "a", (2, 4, 32, 2)).spec == P(None, None, None, None)
    assert [where.spec for where in long.lookups] == [
        P("data", None, "sequence"),
        P("data", "sequence"),
    ]
    with pytest.raises(UserError, match=r"train.max_length 9 is not divisible by the 2 parts"):
        long.check_tokens("train.max_length", 9)


def test_codes_are_cut_as_their_kernel_and_scales_where_no_block_is_divided():
    model, place = abstract_decoder(), placement(2, 2, 2)
    up, down = site_of(model, "up"), site_of(model, "down")
    inward, outward = P(None, ("fsdp",), ("tensor",)), P(None, ("tensor",), ("fsdp",))
    assert {s.spec for s in place.quantized(up, (2, 128, 192)).values()} == {inward}
    found = place.quantized(down, (2, 192, 128))  # three blocks, which two devices cannot share
    assert found["codes"].spec == outward
    assert found["scales"].spec == P(None, None, ("fsdp",))
    found = place.quantized_in_use(down, (2, 192, 128))
    assert found["codes"].spec == P(None, ("tensor",), None)
    assert found["scales"].spec == P(None, None, None)


def test_a_large_kernel_is_refused_where_it_would_be_cut_unevenly_a_small_one_stays_whole():
    small = abstract_decoder(intermediate_size=49)
    assert placement(1, 4, 2).parameter(site_of(small, "up"), "kernel").spec == P(None, ("fsdp",))
    large = abstract_decoder(intermediate_size=32771)
    with pytest.raises(UserError, match=r"up_proj \(kernel\) has 32771 rows along inner, which"):
        placement(1, 4, 2).parameter(site_of(large, "up"), "kernel")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: placement(3, 1, 1), "does not use exactly the 8 available devices"),
        (lambda: placement(2, 2, 1), "does not use exactly the 8 available devices"),
        (lambda: placement(-1, 3, 1), "does not use exactly the 8 available devices"),
        (lambda: MeshConfig(-1, -1), "only one may be -1"),
        (lambda: MeshConfig(0), "mesh.data is 0: give 1 or more"),
        (lambda: Rules(inner=("fsdp",)), "partition both embed and inner along fsdp"),
        (lambda: Rules(batch=("data", "tensor")), "partition both batch and inner along tensor"),
        (lambda: Rules(tokens=("tensor",)), "partition both tokens and inner along tensor"),
        (lambda: Rules(batch=("data", "data")), "names an axis twice"),
        (lambda: Rules(embed=("tensr",)), "names 'tensr' (did you mean 'tensor'?)"),
        (lambda: placement(4, 2, 1).check_rows("train.batch_size", 12), "not divisible by the 8"),
    ],
)
def test_bad_meshes_are_refused_in_one_line(make, message):
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_micro_batches_count_too(run_config):
    place = placement(4, 2, 1)
    import dataclasses

    def with_rows(rows, grad_accum_steps):
        train = dataclasses.replace(
            run_config.train, batch_size=rows, grad_accum_steps=grad_accum_steps, eval_batch_size=8
        )
        return dataclasses.replace(run_config, train=train)

    check_batches(with_rows(32, 4), place)
    with pytest.raises(UserError, match="grad_accum_steps 4 is not divisible by the 8 parts"):
        check_batches(with_rows(32, 8), place)


@pytest.fixture
def run_config():
    from goat_jax.config.run import ModelConfig
    from goat_jax.data.tasks.registry import reviews

    mesh = MeshConfig(2, -1, rules=Rules(vocab=()))
    return RunConfig(ModelConfig("m"), reviews(), mesh=mesh)


def test_a_mesh_is_written_down_and_read_back(run_config):
    assert config_from_json(flatten(run_config)) == run_config


def test_batches_lie_as_their_rows_say():
    place, values = placement(2, 2, 2), np.arange(16, dtype=np.float32).reshape(8, 2)
    assert local_rows(place, 8) == slice(0, 8) and share_of_rows(place, 8) == (0, 1)
    for batch in (put_batch({"x": values}, place, 8), put_whole_batch({"x": values}, place)):
        array = batch["x"]
        np.testing.assert_array_equal(array, values)
        assert {shard.data.shape for shard in array.addressable_shards} == {(2, 2)}


@pytest.mark.parametrize("layers", [3, 8, 9])
@pytest.mark.parametrize(
    "spec", [P(), P(None, "fsdp", "tensor"), P(None, "tensor"), P(None, None, ("tensor", "fsdp"))]
)
def test_layers_are_whole_where_they_are_worked_on(layers, spec):
    mesh = placement(2, 2, 2).mesh
    values = np.random.default_rng(0).normal(size=(layers, 4, 8)).astype(np.float32)
    numbers = jnp.arange(layers)
    seen = []

    def work(kernel, number):
        seen.append(kernel.shape)
        return jnp.cumsum(kernel, axis=1) * number.astype(jnp.float32), kernel.sum()

    run = jax.jit(lambda *a: map_layers(work, mesh, (spec, P()), (spec, P()), *a))
    kernel = jax.device_put(values, jax.NamedSharding(mesh, spec))
    out, total = run(kernel, numbers)
    assert set(seen) == {(4, 8)}
    expected = np.cumsum(values, axis=2) * np.arange(layers)[:, None, None]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, values.sum((1, 2)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_start_on_a_mesh_is_the_start_on_one_device():
    starts = []
    for place in (None, placement(2, 2, 2)):
        model = Decoder(tiny_decoder_config(num_layers=3), rngs=nnx.Rngs(0))
        if place is not None:
            place_model(model, place)
        spec = method_spec("pissa", total_rank=4)
        inject(model, spec, ["up_proj"], key=KEY, sharder=place)
        up = expect(Dense, site_of(model, "up").module)
        factors = expect(Adapter, up.adapter).factors()
        starts.append((up.kernel[...], factors["a"], factors["b"]))
    for one, other in zip(*starts, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
