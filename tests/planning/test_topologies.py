"""Devices to compile for, their limits, and collectives between nodes."""

import dataclasses
import importlib.util
import types

import jax
import pytest

from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.errors import UserError
from goat_jax.hardware.chips import CHIPS, chip_of
from goat_jax.hardware.gpu_target import gpu_target
from goat_jax.hardware.topologies import Topology, find_topology
from goat_jax.planning.hlo_collectives import Exchange, collectives
from goat_jax.planning.plan import StepPlan, plan
from goat_jax.sharding.config import MeshConfig
from kinds import present

gpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="the GPUs' compiler is not installed: pip install 'goat-jax[plan-gpu]'",
)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_a_device_is_known_by_its_kind(kind, name):
    assert chip_of(types.SimpleNamespace(device_kind=kind)) == CHIPS[name]


def test_an_unknown_kind_has_no_limits():
    assert chip_of(types.SimpleNamespace(device_kind="cpu")) is None


def test_a_core_has_its_share_of_the_chip():
    core = present(chip_of(types.SimpleNamespace(device_kind="TPU7x", num_cores=1)))
    assert (core.flops, core.memory) == (2307e12 / 2, 96 * 2**30)


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.cuda])
def test_a_gpu_s_description_says_what_its_table_says(name):
    chip = CHIPS[name]
    lines = gpu_target(chip.kinds[0], chip).splitlines()
    assert f"  core_count: {present(chip.cuda).multiprocessors}" in lines
    assert f"  device_memory_size: {chip.memory}" in lines
    assert f"  memory_bandwidth: {int(chip.bandwidth)}" in lines
    assert f'device_description_str: "{chip.kinds[0]}"' in lines


@pytest.mark.parametrize(
    ("groups", "share"),
    [
        ("mesh['x'=2,'y'=2] {'y'}", 0),
        ("mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}", 1 / 2),
        ("{{0,1,2,3}}", 1 / 4),  # half of the bytes, by two adapters
        ("{{0,1},{2,3}}", 0),
        ("{{0,2},{1,3}}", 1 / 2),
        ("[2,2]<=[4]", 0),
        ("[2,2]<=[2,2]T(1,0)", 1 / 2),
        ("{}", 1 / 4),
    ],
)
def test_bytes_between_nodes_depend_on_the_groups(groups, share):
    text = f"""\
ENTRY %main (x: f32[64]) -> f32[64] {{
  ROOT %r = f32[64]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add
}}
"""
    assert collectives(text, [0, 0, 1, 1])["all-reduce"] == Exchange(1, 256, int(256 * share))
    assert collectives(text, [0, 0, 0, 0])["all-reduce"] == Exchange(1, 256)


def test_the_network_bounds_a_step_between_nodes():
    exchanges = {"all-gather": Exchange(1, 450 * 10**9, 100 * 10**9)}
    found = StepPlan(16, {}, 8, 0, 0, 0, 0, exchanges, 0, 0, 0)
    assert found.roofline(CHIPS["h100"])["exchange"] == 1.0
    assert found.roofline(CHIPS["h100"])["network"] == 2.0
    assert "network" not in found.roofline(CHIPS["v5e"])


def test_a_slice_is_one_node_and_gpus_have_their_own():
    devices = [types.SimpleNamespace(process_index=index) for index in (0, 1)]
    assert list(Topology("v5e:2", devices, CHIPS["v5e"]).nodes) == [0, 0]
    assert list(Topology("h100:2x1", devices, CHIPS["h100"]).nodes) == [0, 1]


@pytest.mark.parametrize(
    ("name", "chip", "message"),
    [
        ("gpu:8", None, "chip 'gpu' is not known: choose from v4, v5e"),
        ("h10:8", None, "chip 'h10' is not known .did you mean 'h100'"),
        ("h100", None, "is not valid: give cpu:N, a TPU slice"),
        ("cpu:x", None, "is not valid: give cpu:N, a TPU slice"),
        ("cpu:99", None, "has 8 CPU devices, not 99"),
        ("cpu:8", "v5", "chip 'v5' is not known"),
        ("h100:8x", None, "give the number of GPUs, such as h100:8"),
        ("h100:0", None, "give the number of GPUs, such as h100:8"),
        ("h100:2x2x2", None, "give the number of GPUs, such as h100:8"),
    ],
)
def test_unknown_devices_are_refused(name, chip, message):
    with pytest.raises(UserError, match=message):
        find_topology(name, chip)


@pytest.mark.parametrize(("name", "extra"), [("h100:8", "plan-gpu"), ("v5e:4x4", "tpu")])
def test_a_missing_compiler_names_its_extra(name, extra, monkeypatch):
    for package in ("jax_cuda12_plugin", "libtpu"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=f"a plan for {name} needs .*goat-jax.{extra}"):
        find_topology(name)


def small(**mesh):
    return RunConfig(
        ModelConfig("smollm2-135m", dtype="bfloat16", remat="full"),
        language_files("a.jsonl", "b.jsonl"),
        AdapterConfig("goat", total_rank=16, modules_to_save=()),
        train=TrainConfig(batch_size=8, eval_batch_size=8, max_length=64),
        mesh=MeshConfig(**mesh),
    )


def gpu_plan(topology, path="smollm2-135m", **mesh):
    config = small(**mesh)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
    with jax.numpy_dtype_promotion("standard"):
        return plan(config, find_topology(topology))


@gpu_compiler
@pytest.mark.nightly
def test_data_parallel_nodes_exchange_gradients_alone():
    """The base is sharded inside each node; no activations are exchanged anywhere."""
    found = gpu_plan("h100:2x2", "llama-3-8b", data=2, fsdp=2).exchanges
    assert found["all-gather"].network_bytes == 0 < found["all-reduce"].network_bytes
    assert found["all-to-all"].bytes < 0.01 * found["all-gather"].bytes


@gpu_compiler
@pytest.mark.nightly
def test_one_gpu_is_planned():
    found = gpu_plan("h200:1")
    assert found.exchanges == {} and found.devices == 1 and found.temporaries > 0
