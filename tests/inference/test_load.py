"""Loading a run: neither its optimizer nor its decompositions are made again."""

import jax
import numpy as np
import pytest

import goat_jax
from goat_jax.injection import svd_cache
from goat_jax.training import setup
from goat_jax.training.checkpoints.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def first(light_finished):
    return goat_jax.load(light_finished[0].out)


@pytest.mark.slow
def test_a_loaded_run_scores_as_it_did_in_training(first, light_finished):
    summary = light_finished[1]
    best = summary.after if first.step == summary.step else None
    assert best is not None, "the last step is the best one, so that its scores are at hand"
    assert first.evaluate() == pytest.approx(best, rel=1e-6)


def test_the_optimizer_and_the_decompositions_are_left_out(first, light_finished, monkeypatch):
    def never(*given, **options):
        raise AssertionError("made again")

    monkeypatch.setattr(setup, "make_optimizer", never)
    for route in svd_cache.ROUTES:
        monkeypatch.setitem(svd_cache.ROUTES, route, never)
    again = goat_jax.load(light_finished[0].out)
    assert jax.tree.leaves(again.trained.opened.state.opt_state) == []
    for one, other in zip(
        *(jax.tree.leaves(run.trained.base) for run in (first, again)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_loading_says_nothing(light_finished, caplog):
    goat_jax.load(light_finished[0].out)
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_the_whole_state_holds_the_same_arrays(first, light_finished):
    config = light_finished[0]
    checkpoints = Checkpoints(first.folder, config.best_by, read_only=True)
    built = setup.build(config)
    whole = checkpoints.restore(built.state, None, first.step).state
    checkpoints.close()
    assert jax.tree.leaves(whole.opt_state)
    trees = (whole.trainable, built.base), (first.trained.trainable, first.trained.base)
    for one, other in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(one, other)


def test_initial_factors_are_made_only_where_they_are_asked_for(first, light_finished):
    asked = setup.build(light_finished[0], training=False).state.trainable["adapter"]
    left_out = first.trained.setup.state.trainable["adapter"]
    assert all(np.any(np.asarray(each)) for each in jax.tree.leaves(asked))
    assert not any(np.any(np.asarray(each)) for each in jax.tree.leaves(left_out))


def test_results_are_printed_as_tables(first, light_finished):
    summary = light_finished[1]
    scores = first.evaluate()
    assert repr(scores).splitlines()[2].split() == ["loss", f"{scores['loss']:.4g}"]
    assert scores._repr_html_().count("<tr>") == 1 + len(scores)
    lines = repr(summary).splitlines()
    assert lines[0].split() == ["held", "out", "before", "after"]
    assert lines[2].split() == [
        "loss",
        *(f"{s['loss']:.4f}" for s in (summary.before, summary.after)),
    ]
    assert lines[-1].startswith(f"finished at step {summary.step}; best step ")
    assert lines[-1].endswith(f"; in {summary.folder}")
    assert lines[-1] in summary._repr_html_()
