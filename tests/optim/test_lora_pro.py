"""LoRA-Pro and LoRA+ by their algebra and by the published code's numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goat_jax.errors import UserError
from goat_jax.optim.adam import scale_by_adam
from goat_jax.optim.lora_plus import lora_plus
from goat_jax.optim.lora_pro import CHOICES, adjust, lora_pro, lora_pro_full
from kinds import compiled

ADJUST = jax.jit(adjust, static_argnums=5)


def _random(seed=0, lead=(), width=7, rank=3, out=5):
    keys = jax.random.split(jax.random.key(seed), 3)
    a = jax.random.normal(keys[0], (*lead, width, rank))
    b = jax.random.normal(keys[1], (*lead, rank, out))
    full = jax.random.normal(keys[2], (*lead, width, out))
    return a, b, full


def _factor_gradients(a, b, full, scale):
    return scale * full @ jnp.swapaxes(b, -1, -2), scale * jnp.swapaxes(a, -1, -2) @ full


@pytest.mark.parametrize("x", CHOICES)
def test_the_move_of_the_kernel_is_the_projection_of_the_full_gradient(x):
    with jax.default_matmul_precision("highest"):
        a, b, full = _random()
        scale = jnp.float32(1.7)
        grads = ADJUST(a, b, *_factor_gradients(a, b, full, scale), scale, x)
        moved = scale * (a @ grads[1] + grads[0] @ b)
        on_a, on_b = a @ jnp.linalg.pinv(a), jnp.linalg.pinv(b) @ b
        expected = on_a @ full + (full - on_a @ full) @ on_b
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_sylvester_is_the_choice_nearest_to_the_raw_gradients():
    with jax.default_matmul_precision("highest"):
        a, b, full = _random()
        raw = _factor_gradients(a, b, full, 1.0)
        scale = jnp.float32(1.0)

        def distance(grads):
            return sum(float(jnp.square(g - r).sum()) for g, r in zip(grads, raw, strict=True))

        best = ADJUST(a, b, *raw, scale, "sylvester")
        nudge = 0.01 * jax.random.normal(jax.random.key(9), (3, 3))
        near = (best[0] + a @ nudge, best[1] - nudge @ b)
        others = [ADJUST(a, b, *raw, scale, x) for x in ("symmetry", "zero")]
    assert distance(best) < min(map(distance, [*others, near]))


def test_a_zero_b_needs_no_special_case():
    a, b, full = _random()
    b = jnp.zeros_like(b)
    grads = ADJUST(a, b, *_factor_gradients(a, b, full, 2.0), jnp.float32(2.0))
    assert np.isfinite(grads[0]).all() and np.isfinite(grads[1]).all()
    np.testing.assert_array_equal(grads[0], 0.0)


@pytest.mark.slow
def test_a_stack_of_experts_is_adjusted_one_by_one():
    a, b, full = _random(lead=(2, 4))
    scale = jnp.arange(1.0, 9.0).reshape(2, 4)
    raw = _factor_gradients(a, b, full, 1.0)
    together = ADJUST(a, b, *raw, scale)
    alone = ADJUST(a[1, 2], b[1, 2], raw[0][1, 2], raw[1][1, 2], scale[1, 2])
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours[1, 2], theirs, rtol=1e-3, atol=1e-4)


def _cases(shared, method):
    """The golden cases of a method: [(entry, arrays)]."""
    folder = shared / "golden" / "methods"
    entries = json.loads((folder / "methods.json").read_text())
    chosen = [entry for entry in entries if entry["method"] == method]
    assert chosen
    return [(entry, dict(np.load(folder / f"{entry['name']}.npz"))) for entry in chosen]


def _pair(arrays, suffix="0"):
    return {"a": jnp.asarray(arrays["A" + suffix].T), "b": jnp.asarray(arrays["B" + suffix].T)}


def _close(ours, theirs, tolerance):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("x", ["sylvester", "zero"])
def test_adjusted_gradients_are_the_published_ones(shared, x):
    for entry, arrays in _cases(shared, "lora_pro"):
        pair = _pair(arrays)
        grads = (jnp.asarray(arrays[name].T) for name in ("grad_A", "grad_B"))
        with jax.default_matmul_precision("highest"):
            a, b = ADJUST(pair["a"], pair["b"], *grads, jnp.float32(entry["scale"]), x)
        _close(a.T, arrays[f"adj_A_{x}"], 1e-5)
        _close(b.T, arrays[f"adj_B_{x}"], 1e-5)


def _run(entry, arrays, optimizer, steps):
    """Losses and factors of training the one adapter of a case, outside of any model."""
    kernel, x, target = (jnp.asarray(arrays[name]) for name in ("W0", "x", "target"))
    start = x @ kernel.T
    start = start + jnp.broadcast_to(jnp.asarray(arrays["bias"]), start.shape)

    def loss(params):
        delta = (x @ params["layer"]["a"]) @ params["layer"]["b"]
        return jnp.square(start + entry["scale"] * delta - target).mean()

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params, losses = {"layer": _pair(arrays)}, []
    state = optimizer.init(params)
    with jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):
        for _ in range(steps):
            params, state, value = step(params, state)
            losses.append(float(value))
    assert compiled(step) == 1
    return params["layer"], np.array(losses)


def _published(entry, kind):
    """The chain that a published trajectory is."""
    settings = entry["optimizer"][kind]
    scales = {"layer": {"scale": jnp.float32(entry["scale"])}}
    rate = optax.scale(-settings["lr"])
    decay = optax.add_decayed_weights(settings.get("weight_decay", 0.0))
    adam = scale_by_adam(0.9, 0.999, 1e-8)
    return {
        "sgd": lambda: optax.chain(lora_pro(scales), rate),
        "sgd_zero": lambda: optax.chain(lora_pro(scales, "zero"), rate),
        "adamw": lambda: optax.chain(lora_pro(scales), adam, decay, rate),
        "full32": lambda: optax.chain(lora_pro_full(scales), rate),
    }[kind]()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "sgd_zero", "adamw", "full32"])
def test_trajectories_are_the_published_ones(shared, kind):
    for entry, arrays in _cases(shared, "lora_pro"):
        pair, losses = _run(entry, arrays, _published(entry, kind), 20)
        _close(losses, arrays[f"{kind}_losses"], 1e-4)
        _close(pair["a"].T, arrays[f"{kind}_A_final"], 1e-3)
        _close(pair["b"].T, arrays[f"{kind}_B_final"], 1e-3)


def test_lora_plus_is_pefts(shared):
    for entry, arrays in _cases(shared, "loraplus"):
        if entry["train_bias"]:
            continue
        settings = entry["optimizer"]
        decay = optax.add_decayed_weights(settings["loraplus_weight_decay"])
        adam, rate = scale_by_adam(0.9, 0.999, 1e-8), optax.scale(-settings["lr"])
        optimizer = optax.chain(adam, decay, rate, lora_plus(settings["ratio"]))
        pair, losses = _run(entry, arrays, optimizer, settings["steps"])
        _close(losses, arrays["adamw_losses"], 1e-4)
        _close(pair["a"].T, arrays["A_final"], 1e-3)
        _close(pair["b"].T, arrays["B_final"], 1e-3)


def test_unknown_choices_are_refused():
    with pytest.raises(UserError, match="LoRA-Pro x 'sylvestre' is not one of sylvester"):
        lora_pro({}, "sylvestre")
    with pytest.raises(UserError, match=r"LoRA.+ ratio 0 must be above 0"):
        lora_plus(0)
