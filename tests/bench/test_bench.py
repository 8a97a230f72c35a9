"""Measurements: fair turns, alternatives that compute the same, exact counts, the verb itself."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.adapters.methods import method_spec
from goat_jax.bench import layer
from goat_jax.bench.alternatives import ALTERNATIVES
from goat_jax.bench.layer import SIZES, Size, _compiled, contenders, measure_growth
from goat_jax.bench.turns import take_turns
from goat_jax.cli.main import main
from goat_jax.core.dispatch import dispatch
from goat_jax.plots.growth import slope
from tiny_run import LIGHT


def test_turns_alternate_and_every_call_is_warmed_up():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    found = take_turns(contenders, 2)
    assert "".join(calls) == "abc" + "abc" + "cba"
    assert {len(timing.seconds) for timing in found.values()} == {2}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_other_dispatches_give_the_same_output_and_gradients(name):
    keys = jax.random.split(jax.random.key(0), 4)
    x, a = jax.random.normal(keys[0], (10, 12)), jax.random.normal(keys[1], (4, 12, 3))
    b, logits = jax.random.normal(keys[2], (4, 3, 8)), jax.random.normal(keys[3], (10, 4))
    top = jax.lax.top_k(logits, 2)[0][:, 1:]
    gate = jnp.where(logits >= jnp.broadcast_to(top, logits.shape), jax.nn.softmax(logits), 0.0)

    def value(function):
        of = jax.value_and_grad(lambda *arrays: jnp.sin(function(*arrays)).sum(), (0, 1, 2))
        return jax.jit(of)(x, a, b, gate)

    for mine, theirs in zip(
        jax.tree.leaves(value(ALTERNATIVES[name])), jax.tree.leaves(value(dispatch)), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


# Other sizes in bfloat16 make the same arrays of other numbers.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "dtype"),
    [pytest.param(size, jnp.float32, id=f"f32-{size}") for size in SIZES]
    + [pytest.param(SIZES[-1], jnp.bfloat16, id=f"bf16-{SIZES[-1]}")]
    + [
        pytest.param(size, jnp.bfloat16, id=f"bf16-{size}", marks=pytest.mark.nightly)
        for size in SIZES[:-1]
    ],
)
def test_goat_needs_no_array_of_its_input_s_size_more_than_plain_lora(size, dtype, monkeypatch):
    """Temporary bytes of forward and backward: besides LoRA's only those of (S, E) and (I, E)."""
    # The largest sizes' random numbers take long, and which numbers they are is of no account.
    monkeypatch.setattr(layer, "random_like", lambda like, seed: jnp.zeros(like.shape, like.dtype))
    specs = contenders(32)
    plain = _compiled(size, specs["lora"], dtype).temporaries
    more = _compiled(size, specs["goat"], dtype).temporaries - plain
    assert more <= 8 * 4 * 16 * max(size.tokens, size.inputs)


@pytest.mark.slow
def test_cost_by_experts_is_flat_but_for_the_router():
    """At one total rank the products grow by the router alone: 3 of S x I x E."""
    size = Size(256, 128, 128)
    specs = {e: method_spec("goat", total_rank=32, num_experts=e, top_k=2) for e in (4, 8, 32)}
    flops = {e: _compiled(size, spec, jnp.float32).flops for e, spec in specs.items()}
    router = 2 * size.tokens * 3 * size.inputs
    assert flops[8] - flops[4] == 4 * router and flops[32] - flops[4] == 28 * router


@pytest.mark.nightly
def test_growth_is_measured_along_every_axis():
    found = measure_growth(Size(32, 16, 16), method_spec("lora"), (8, 16), (4, 8), turns=1)
    assert {axis: [n for n, _ in points] for axis, points in found.items()} == {
        "total rank": [8, 16],
        "experts at rank 8": [4, 8],
        "tokens": [8, 16, 32, 64],
        "layers": [1, 2, 4, 8],
    }
    flops = [one.flops for _, one in found["layers"]]
    assert [n / flops[0] for n in flops] == [1, 2, 4, 8]
    oblong = measure_growth(Size(8, 16, 24), method_spec("lora"), (1,), (1,), turns=1)
    assert "layers" not in oblong  # no layer takes the outputs of the one before
    assert slope([1, 2, 4, 8], [1.0, 4.0, 16.0, 64.0]) == pytest.approx(2.0)


@pytest.mark.slow
def test_layers_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "bench"
    words = ["bench", "layer", "--size", "16,32,24", "--rank", "8", "--turns", "2"]
    assert main([*words, "--out", str(out)]) == 0
    found = json.loads((out / "bench_layer.json").read_text())
    names = [row["name"] for row in found["layers"]]
    assert names[:2] == ["lora", "goat"] and found["layers"][0]["ratio"] == 1.0
    assert "| goat, ragged_dot" in capsys.readouterr().out and found["machine"]["jax"]


@pytest.mark.nightly  # the verb's arguments are those of layers
def test_steps_from_the_command_line(tiny, capsys):
    words = f"bench step --config {tiny / 'config.py'}:{LIGHT} --methods goat"
    small = "--turns 1 --train.batch-size 2 --train.max-length 16"
    assert main([*words.split(), *small.split()]) == 0
    printed = capsys.readouterr().out
    assert "| 2 x 16 | goat" in printed and "a plain matrix product reaches" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "layer", "--size", "1,2"], "'1,2' is not TOKENS,IN,OUT"),
        (["bench", "step"], "bench step needs --config FILE"),
        (["bench", "layer", "--train.steps", "3"], "only bench step takes fields of a config"),
    ],
)
def test_what_does_not_fit_is_said(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_bench_start_has_a_row_for_each_route(capsys, tmp_path):
    sizes = ["--size", "40,48", "--routes", "gram", "device"]
    assert main(["bench", "start", *sizes, "--out", str(tmp_path)]) == 0
    assert "| 40 x 48 | device |" in capsys.readouterr().out
    values = json.loads((tmp_path / "bench_start.json").read_text())["decompositions"]
    gram, device = values
    more = sum(4 * h**2 * 48 + 9 * h**3 + 2 * 40 * h**2 for h in (35, 18))
    assert gram["flops"] == 4 * 40**2 * 48 + 9 * 40**3 == device["flops"] - more
    for one in values:
        assert max(one["residuals"].values()) < 1e-6
    assert set(gram["products"].values()) == {0.0}
    assert 0 < max(device["products"].values()) < 1e-4
