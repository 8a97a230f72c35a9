"""Methods whose training is more than steps: AdaLoRA prunes, LoRA-Dash switches, LoRA-GA looks
at the gradient first. All through `fit`."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import goat_jax
from goat_jax.adapters.context import Context
from goat_jax.config.run import AdapterConfig
from goat_jax.errors import UserError
from goat_jax.injection.inject import inject
from goat_jax.models.load import load_model
from goat_jax.nn.dense import Adapter, merge_model, split_model
from goat_jax.nn.named_modules import find_modules
from goat_jax.optim.rank_budget import adapters_with_core
from goat_jax.testing import assert_close
from goat_jax.training.checkpoints.checkpoint import Checkpoints
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.training.checks import model_options
from goat_jax.training.data import load_data
from goat_jax.training.init_gradients import kernel_gradients
from goat_jax.training.loop import Loop
from goat_jax.training.losses import CLASSIFICATION
from goat_jax.training.setup import build
from goat_jax.training.trainer import fit
from kinds import expect


def with_method(config, method, out, steps=14, **options):
    adapter = dataclasses.replace(config.adapter, method=method, dropout=None, options=options)
    train = dataclasses.replace(config.train, steps=steps)
    return dataclasses.replace(config, adapter=adapter, train=train, out=str(out))


@pytest.mark.slow
def test_adalora_ends_with_its_target_of_triplets(config, tmp_path):
    run = with_method(config, "adalora", tmp_path / "run", warmup=2, cooldown=4, target_rank=3)
    summary = fit(run, progress=False)
    assert summary.before and summary.after["loss"] < summary.before["loss"]
    loaded = goat_jax.load(summary.folder, 14)
    assert loaded.evaluate() == pytest.approx(summary.after, rel=1e-6)
    state = loaded.trained.opened.state
    cores = [own["core"] for own in adapters_with_core(state.trainable).values()]
    layers = sum(core[..., 0].size for core in cores)
    assert sum(int((core != 0).sum()) for core in cores) == 3 * layers
    assert len({int((core != 0).sum()) for core in cores}) > 1, "some layers keep more than others"


def pretrained(config):
    """The model as `build` loads it."""
    key = jax.random.split(jax.random.key(config.train.seed), 3)[0]
    return load_model(config.model.path, key=key, **model_options(config)).model


def coefficients(state):
    leaves = jax.tree_util.tree_leaves_with_path(state.trainable["adapter"])
    return [np.asarray(leaf) for path, leaf in leaves if path[-1].key == "coefficients"]


@pytest.mark.slow
def test_lora_dash_finds_directions_and_trains_them(two_modules, tmp_path):
    summary = fit(
        with_method(two_modules, "lora_dash", tmp_path / "run", change_step=5), progress=False
    )
    loaded = goat_jax.load(summary.folder, 14)
    assert loaded.evaluate() == pytest.approx(summary.after, rel=1e-6)
    before, after = restore_run(summary.folder, 10).state, loaded.trained.opened.state
    assert all(np.abs(values).min() > 0 for values in coefficients(after))
    chex.assert_trees_all_equal(before.constants, after.constants)
    vectors = [leaf for leaf in jax.tree.leaves(after.constants) if leaf.shape[-1] == 8]
    for u in vectors:
        gram = np.einsum("...IK,...IL->...KL", u, u)
        assert_close(gram, np.broadcast_to(np.eye(8, dtype=np.float32), gram.shape), 1e-5)


# That a phase changes at its step and that a run takes up where it was is in test_loop.py.
@pytest.mark.nightly
def test_a_switched_run_continues_after_a_fault_with_the_same_bits(
    two_modules, tmp_path, monkeypatch
):
    whole = with_method(two_modules, "lora_dash", tmp_path / "whole", change_step=5)
    torn = dataclasses.replace(whole, out=str(tmp_path / "torn"))
    fit(whole, progress=False)
    take = Loop.take_step

    def fails_at_12(loop):
        if loop.step == 12:
            raise RuntimeError("power cut")
        take(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "take_step", fails_at_12)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(torn, progress=False)
    fit(torn, progress=False)
    one, other = (whole_state(tmp_path / name) for name in ("whole", "torn"))
    chex.assert_trees_all_equal(jax.random.key_data(one.key), jax.random.key_data(other.key))
    for part in ("trainable", "opt_state", "constants"):
        chex.assert_trees_all_equal(getattr(one, part), getattr(other, part))


def whole_state(folder):
    """The last state with the optimizer's, which `restore_run` leaves out."""
    config, _ = load_run(folder)
    checkpoints = Checkpoints(folder, config.best_by, read_only=True)
    state = checkpoints.restore(build(config).state, None).state
    checkpoints.close()
    return state


def test_a_switch_that_would_never_come_is_refused(two_modules, tmp_path):
    with pytest.raises(UserError, match=r"changes after step 100, and the run has 14.*1\.\.13"):
        build(with_method(two_modules, "lora_dash", tmp_path / "run"))


@pytest.mark.slow
def test_lora_ga_starts_from_the_gradient_of_the_first_batches(two_modules, tmp_path):
    run = with_method(two_modules, "lora_ga", tmp_path / "run", gradient_batches=2)
    built = build(run)
    model = merge_model(built.graph, built.state.trainable, built.base)
    plain = pretrained(run)
    data = load_data(run).train
    batches = [next(data) for _ in range(2)]
    site = next(s for s in find_modules(model) if s.pattern.endswith("attention.self.query"))
    layer, adapter = 1, expect(Adapter, site.module.adapter)
    own = next(s for s in find_modules(plain) if s.path == site.path).module

    # The gradient by another way: of an adapter that is the whole kernel.
    loaded = pretrained(run)
    full = AdapterConfig("full").spec()
    inject(loaded, full, run.adapter.target_modules, key=jax.random.key(0))
    graph, trainable, base = split_model(loaded)
    grads = [loss_gradient(graph, trainable, base, batch) for batch in batches]
    g = np.mean(
        [at(each["adapter"], site.path)["adapter"]["kernels"][layer, 0] for each in grads], 0
    )

    u, _, vt = np.linalg.svd(g)
    a, b = (adapter.factors()[name][layer, 0] for name in "ab")
    rank = a.shape[-1]
    size = own.kernel.shape[-1] ** 0.25 / 4
    assert_close(a @ a.T, size**2 * u[:, :rank] @ u[:, :rank].T, 1e-3)
    assert_close(b.T @ b, size**2 * vt[rank : 2 * rank].T @ vt[rank : 2 * rank], 1e-3)
    scale = float(adapter.scale[...][layer, 0])
    assert_close(site.module.kernel[...][layer] + scale * a @ b, own.kernel[...][layer], 1e-5)


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def loss_gradient(graph, trainable, base, batch):
    def loss_of(trainable):
        ctx = Context.of_batch(batch, None, batch["attention_mask"])
        loss, _, _ = CLASSIFICATION.loss(merge_model(graph, trainable, base), batch, ctx)
        return loss / CLASSIFICATION.count(batch)

    return jax.jit(jax.grad(loss_of))(trainable)


@pytest.mark.slow
def test_gradients_are_averaged_batch_by_batch(config):
    model = pretrained(config)
    data = load_data(config).train
    batches = [next(data) for _ in range(2)]
    target_modules = r".*query"
    both = kernel_gradients(model, CLASSIFICATION, batches, target_modules)
    each = [kernel_gradients(model, CLASSIFICATION, [batch], target_modules) for batch in batches]
    assert all(name.endswith("query") for name in both)
    for name, value in both.items():
        assert_close(value, (each[0][name] + each[1][name]) / 2, 1e-6)


@pytest.mark.nightly
def test_lora_ga_trains_and_is_opened_again(two_modules, tmp_path):
    # Its factors start large, so that a rate at which others learn throws it off.
    optimizer = dataclasses.replace(two_modules.optimizer, learning_rate=1e-3)
    run = with_method(two_modules, "lora_ga", tmp_path / "run", steps=10)
    summary = fit(dataclasses.replace(run, optimizer=optimizer), progress=False)
    assert summary.before and summary.after["loss"] < summary.before["loss"]
    assert restore_run(summary.folder, 10).step == 10
