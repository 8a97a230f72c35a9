"""The choice of a way to compute attention, and every way against the definition."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from attention_cases import CASES, WHOLE, cases, gradients, ids, reference
from goat_jax.core.attention import Visible
from goat_jax.errors import UserError
from goat_jax.nn.attention import PLAIN, WAYS, AttentionPlan, attention
from goat_jax.nn.attention_kernels import _real_first, splash
from goat_jax.nn.attention_need import Need
from kinds import present

GPU = SimpleNamespace(platform="gpu", compute_capability="9.0")
TPU = SimpleNamespace(platform="tpu")
CPU = SimpleNamespace(platform="cpu")
AXES = ("data", "fsdp", "tensor")
NEED = Need(4096, 4096, 128, "bfloat16", causal=True, windows=(None, 512))


def at_night(cases, in_ci):
    """Cases as pytest parameters: those that are not named in `in_ci` are left to the night."""
    marks = pytest.mark.nightly
    return [case if case.name in in_ci else pytest.param(case, marks=marks) for case in cases]


@pytest.fixture
def has_cudnn(monkeypatch):
    """Lets jax have a cuDNN, which it has only where the plugin for CUDA is installed."""
    monkeypatch.setattr("goat_jax.nn.attention_kernels._jax_refusal", lambda need: None)


@pytest.mark.parametrize(
    ("device", "change", "way", "why"),
    [
        (CPU, {}, "blocks", None),
        (CPU, {"queries": PLAIN, "keys": PLAIN}, "xla", None),
        (CPU, {"queries": 1, "cached": True}, "xla", None),
        (CPU, {"dropout": True}, "xla", None),
        (CPU, {"bias": True}, "xla", None),
        (GPU, {}, "cudnn", None),
        (GPU, {"queries": 1, "cached": True}, "xla", None),
        (GPU, {"queries": 50, "keys": 50}, "cudnn", None),
        (GPU, {"dtype": "float32"}, "blocks", "takes bfloat16 and float16, not float32"),
        (GPU, {"size": 256}, "blocks", "head sizes up to 128 in steps of 8, not 256"),
        (GPU, {"size": 36}, "blocks", "head sizes up to 128 in steps of 8, not 36"),
        (GPU, {"soft_cap": True}, "blocks", "has no soft cap"),
        (GPU, {"bias": True}, "xla", "has no bias of the scores"),
        (GPU, {"causal": False}, "blocks", "has windows for causal attention only"),
        (GPU, {"dropout": True}, "xla", "cannot drop out probabilities"),
        (TPU, {}, "splash", None),
        (TPU, {"soft_cap": True, "size": 36, "dtype": "float32"}, "splash", None),
        (TPU, {"queries": 50, "keys": 50}, "xla", "works on blocks of 128 tokens, not 50"),
        (TPU, {"bias": True}, "xla", "has no bias of the scores"),
        (TPU, {"dropout": True}, "xla", "cannot drop out probabilities"),
        (TPU, {"queries": 2048, "cached": True}, "blocks", None),
    ],
)
def test_the_way_follows_the_device_and_the_need(device, change, way, why, has_cudnn):
    need, plan = dataclasses.replace(NEED, **change), AttentionPlan(device=device)
    with jax.default_matmul_precision("default"):  # not that of the tests
        found, refusal = plan.choose(need)
        note = plan.note(need)
    assert found == way and (refusal is None) == (why is None)
    if why is None:
        assert note == (f"attention: {way}" if way in ("cudnn", "splash") else None)
    else:
        assert why in refusal and note == f"attention: {way}, since {refusal}"


def test_splash_is_refused_where_its_compiler_would_fail():
    with jax.default_matmul_precision("highest"):
        way, why = AttentionPlan(device=TPU).choose(NEED)
        wide = AttentionPlan(device=TPU).choose(dataclasses.replace(NEED, dtype="float32"))
    assert way == "blocks" and "does not compile for bfloat16" in present(why)
    assert wide == ("splash", None)


def test_an_old_gpu_and_a_missing_cudnn_are_refusals():
    old = SimpleNamespace(platform="gpu", compute_capability="7.5")
    way, why = AttentionPlan(device=old).choose(NEED)
    assert way == "blocks" and "needs compute capability 8.0, and this GPU has 7.5" in present(why)
    way, why = AttentionPlan(device=GPU).choose(NEED)
    assert way == "cudnn" or "is not available (cuDNN is not detected" in present(why)


@pytest.mark.parametrize(
    ("way", "change", "message"),
    [
        ("cudnn", {}, "cudnn runs on NVIDIA GPUs, not on cpu: choose auto, xla, blocks"),
        ("splash", {}, "splash runs on TPUs, not on cpu: choose auto, xla, blocks"),
        ("blocks", {"dropout": True}, "blocks cannot drop out probabilities.*: choose auto, xla"),
    ],
)
def test_a_named_way_that_cannot_is_one_line(way, change, message):
    need = dataclasses.replace(NEED, **change)
    with pytest.raises(UserError, match=f"^model.attention {message}$"):
        AttentionPlan(way, CPU).choose(need)
    cached = dataclasses.replace(need, queries=1, cached=True, dropout=False)
    assert AttentionPlan(way, CPU).choose(cached)[0] in ("xla", "blocks")


# A window, padding, segments and shared heads in CI; other shapes at night.
SPLASH = ("window and left padding", "segments and a window")


@pytest.mark.slow
@pytest.mark.parametrize("case", at_night(WHOLE, SPLASH), ids=ids)
def test_splash_is_the_definition(case):
    arrays, visible, options = cases(case, jnp.float32)
    kernel = partial(splash, visible=visible, interpret=True, **options)
    expected = gradients(partial(reference, visible=visible, **options), arrays, visible)
    for one, other in zip(expected, gradients(kernel, arrays, visible), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


def test_real_tokens_go_to_the_front_and_back():
    real = jnp.array([[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], bool)
    there, back = _real_first(real, real.sum(1, dtype=jnp.int32))
    expected = [[2, 3, 0, 1], [0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 2, 3]]
    np.testing.assert_array_equal(there, expected)
    np.testing.assert_array_equal(jnp.take_along_axis(there, back, axis=1), [range(4)] * 4)


SHARED = ("window and left padding", "a cache")


@pytest.mark.parametrize(
    "case", at_night([case for case in CASES if case.heads > case.groups], SHARED), ids=ids
)
@pytest.mark.slow
@pytest.mark.parametrize("tensor", [2, 4])
def test_on_a_mesh_each_device_has_its_rows_and_heads(case, tensor):
    mesh = Mesh(np.array(jax.devices()[: 2 * tensor]).reshape(2, 1, tensor), AXES)
    arrays, visible, options = cases(case, jnp.float32)
    plan = AttentionPlan("blocks", None, mesh, ("data", "fsdp"), ("tensor",))
    alone = partial(attention, visible=visible, plan=AttentionPlan("blocks"), **options)
    shared = partial(attention, visible=visible, plan=plan, **options)
    pairs = zip(*(gradients(each, arrays, visible) for each in (alone, shared)), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_heads_that_do_not_divide_are_a_refusal(has_cudnn):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("tensor", "sequence"))
    plan = AttentionPlan(device=GPU, mesh=mesh, tokens=("sequence",), heads=("tensor",))
    even, uneven = (dataclasses.replace(NEED, heads=n, groups=4) for n in (32, 28))
    assert plan.note(even) == "attention: cudnn"
    assert plan.note(uneven) == (
        "attention: blocks, since cudnn takes complete rows, and 28 heads (4 of keys) do not "
        "divide among the 8 devices of tensor and sequence"
    )
    with pytest.raises(UserError, match=r"do not divide .*: choose auto, xla, blocks"):
        dataclasses.replace(plan, way="cudnn").choose(uneven)
    # Rows whose tokens are not sharded, such as those of another length, are complete anyway.
    assert plan.choose(dataclasses.replace(uneven, queries=4097, keys=4097))[0] == "cudnn"


def test_a_mesh_needs_no_exchange():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 1, 4), AXES)
    plan = AttentionPlan("blocks", None, mesh, ("data", "fsdp"), ("tensor",))
    shapes = [jax.ShapeDtypeStruct((4, 16, heads, 8), jnp.float32) for heads in (8, 2, 2)]
    attend = jax.jit(partial(attention, visible=Visible(causal=True), plan=plan))
    text = present(attend.lower(*shapes).compile().as_text())
    assert "all-reduce" not in text and "all-gather" not in text


def test_every_way_has_a_name_in_the_config():
    assert list(WAYS) == ["xla", "blocks", "cudnn", "splash"]
