"""A run whose base is kept in few bits."""

import dataclasses

import pytest

pytest.importorskip("qwix")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.nightly)])
def test_a_run_on_a_quantised_base_learns_and_is_reopened_on_one_device(
    shape, two_modules, tmp_path
):
    from goat_jax.inference.trained_run import load
    from goat_jax.sharding.config import MeshConfig
    from goat_jax.training.trainer import fit

    model = dataclasses.replace(two_modules.model, quantize="nf4")
    mesh = MeshConfig(*shape)
    run = dataclasses.replace(two_modules, model=model, mesh=mesh, out=str(tmp_path / "run"))
    summary = fit(run, progress=False)
    assert summary.before is not None and summary.after["loss"] < 0.7 * summary.before["loss"]
    assert "quantised base: nf4" in str(summary.setup.quantize_report)
    alone = load(tmp_path / "run", step=summary.step).evaluate()
    assert alone["loss"] == pytest.approx(summary.after["loss"], rel=1e-5)
