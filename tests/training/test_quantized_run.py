"""A run whose base is kept in few bits."""

import dataclasses

import pytest

pytest.importorskip("qwix")


@pytest.mark.slow
def test_a_run_on_a_quantised_base_learns(two_modules, tmp_path):
    from goat_jax.training.trainer import fit

    model = dataclasses.replace(two_modules.model, quantize="nf4")
    run = dataclasses.replace(two_modules, model=model, out=str(tmp_path / "run"))
    found = fit(run, progress=False)
    assert found.before is not None and found.after["loss"] < 0.7 * found.before["loss"]
    assert "quantised base: nf4" in str(found.setup.quantize_report)
