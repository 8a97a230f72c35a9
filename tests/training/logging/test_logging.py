"""Records of a run about itself: its time, norms by layer, utilization, a trace."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.config.run import LoggingConfig
from goat_jax.errors import Notice, UserError
from goat_jax.injection import svd_cache
from goat_jax.training.abstract_run import batch_shapes
from goat_jax.training.data import load_data
from goat_jax.training.logging import mfu
from goat_jax.training.logging.header import header
from goat_jax.training.logging.metrics_log import read_records
from goat_jax.training.logging.mfu import StepFlops, measured_peak
from goat_jax.training.logging.norms import norms_by_module, not_finite
from goat_jax.training.setup import build
from goat_jax.training.trainer import fit


@pytest.fixture(scope="module")
def watched(light, tmp_path_factory):
    """The folder of a run of a few steps whose second and third were traced."""
    folder = tmp_path_factory.mktemp("watched") / "run"
    train = dataclasses.replace(light.train, steps=6, log_every=1, save_every=2)
    logging = LoggingConfig(profile="2:3")
    config = dataclasses.replace(light, train=train, logging=logging, out=str(folder))
    fit(config, progress=False)
    return folder


@pytest.mark.slow
def test_the_norms_of_all_modules_make_the_norm_of_the_whole(watched):
    steps, layers = read_records(watched, "train"), read_records(watched, "layers")
    assert [record["step"] for record in layers] == list(range(1, 7))
    for whole, parts in zip(steps, layers, strict=True):
        for name in ("grad_norm", "update_norm"):
            squares = sum(np.sum(np.square(norms)) for norms in parts[name].values())
            assert np.sqrt(squares) == pytest.approx(whole[name], rel=1e-5)
    assert steps[0]["grad_norm"] > 0 and steps[1]["update_norm"] > 0  # the first rate is 0


@pytest.mark.slow
def test_entropies_are_told_by_layer(watched):
    load = read_records(watched, "load")[0]["modules"]
    entropy = read_records(watched, "layers")[-1]["entropy"]
    assert {name: len(rows) for name, rows in load.items()} == {
        name: len(values) for name, values in entropy.items()
    }
    mean = np.mean([np.mean(values) for values in entropy.values()])
    assert mean == pytest.approx(read_records(watched, "train")[-1]["router_entropy"], rel=1e-5)


@pytest.mark.slow
def test_time_is_split_and_the_work_counted(watched):
    for record in read_records(watched, "train"):
        parts = [record[f"{part}_seconds"] for part in ("data", "device", "checkpoint")]
        assert 0 < sum(parts) <= record["seconds"] and record["utilization"] > 0
        assert record["mfu"] == record["utilization"] and record["flops_per_second"] > 0
        assert record["host_peak_bytes"] > 1e8
    # a checkpoint of step 2 or 4 is started after that step's record was due
    saved = [record["checkpoint_seconds"] > 0 for record in read_records(watched, "train")]
    assert saved == [False, False, True, False, True, False]


@pytest.mark.slow
def test_the_trace_of_the_steps_is_there(watched):
    traces = list((watched / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000


@pytest.mark.parametrize("profile", ["3", "0:2", "5:4", "a:b"])
def test_a_profile_that_is_no_range_is_refused(profile):
    with pytest.raises(UserError, match="is not N:M, the first and last step"):
        LoggingConfig(profile=profile)


def test_work_is_counted_once_for_each_shape():
    traced = []

    def step(state, base, batch):
        traced.append(batch["x"].shape)
        return batch["x"] @ base

    flops, base = StepFlops(step, step), jnp.ones((4, 3))
    counts = [flops(None, base, {"x": jnp.ones((rows, 4))}) for rows in (2, 5, 2)]
    assert counts == [(n, n) for n in (2 * 2 * 4 * 3, 2 * 5 * 4 * 3, 2 * 2 * 4 * 3)]
    assert len(traced) == 2


@pytest.mark.slow
def test_a_header_counts_the_kernels_that_the_device_left_to_the_host(light, monkeypatch):
    monkeypatch.setattr(svd_cache, "DEVICE_ERROR", 0.0)
    svd = dataclasses.replace(light.svd, route="device", folder="none")
    config = dataclasses.replace(light, svd=svd)
    text = header(build(config), load_data(config))
    assert "kernels decomposed on the host: 2, because the device's error was up to " in text


@pytest.mark.slow
def test_what_remat_computes_again_is_not_the_model_s(two_modules):
    remat = dataclasses.replace(two_modules.model, remat="full")
    built = build(dataclasses.replace(two_modules, model=remat))
    batch = batch_shapes(two_modules, 4)
    done, needed = StepFlops(built.train_step, built.model_step)(built.state, built.base, batch)
    plain = build(two_modules)
    assert plain.model_step is plain.train_step
    same = StepFlops(plain.train_step, plain.train_step)(plain.state, plain.base, batch)
    assert same == (needed, needed) and 1.2 * needed < done < 1.5 * needed


def test_peaks_are_known_or_measured(monkeypatch):
    assert 1e8 < measured_peak(jnp.float32, size=64) < 1e16
    monkeypatch.setattr(mfu, "measured_peak", lambda dtype, size: 1e12)
    monkeypatch.setattr(jax, "device_count", lambda: 2)

    def peak(kind, platform):
        device = types.SimpleNamespace(device_kind=kind, platform=platform)
        monkeypatch.setattr(jax, "devices", lambda: [device])
        return mfu.peak_of_devices(jnp.bfloat16)

    assert peak("NVIDIA H200", "gpu") == 2 * 989e12
    assert peak("cpu", "cpu") == 2e12
    with pytest.warns(Notice, match="NVIDIA Z9 is not in .* measured products of 8192 x 8192"):
        assert peak("NVIDIA Z9", "gpu") == 2e12


def test_what_is_not_finite_is_named_by_layer():
    names = {("up",): ["0.up", "1.up"], ("head",): ["head"]}
    squares = {
        "adapter": {"up": {"a": np.array([np.inf, 1.0])}, "head": {"a": np.array([1.0, np.nan])}},
        "head": {"norm": {"scale": np.array([np.nan, 1.0, 1.0])}},
    }
    assert not_finite(squares, names) == "head, 0.up, norm.scale"
    assert not_finite(squares, names, most=1) == "head and 2 more"
    norms = norms_by_module({"adapter": {"head": {"a": np.array([9.0, 16.0])}}}, names, {})
    assert norms == {"head": [5.0]}
