"""Devices to compile for: this machine's CPUs, or descriptions of absent TPUs and GPUs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from goat_jax.errors import UserError
from goat_jax.extras import import_extra
from goat_jax.hardware.chips import Chip, find_chip
from goat_jax.hardware.gpu_target import gpu_target
from goat_jax.typing import PyTree

GPU_COMPILER = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""Compiler options for a described GPU.

Autotuning times kernels on a device. Without it, Triton finds no tiles for some products.
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: the topology's name, such as ``v5e:4x4``.
        devices: real CPU devices, or device descriptions from the compiler of TPUs or GPUs.
        chip: the limits of each device; None if unknown.
        options: the options that the compiler needs for these devices.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def nodes(self) -> Sequence[int]:
        """Node of each device, between which the links are slower; one node for a TPU slice."""
        whole = self.chip is None or self.chip.network is None
        return [0 if whole else device.process_index for device in self.devices]

    def on_one_device(self, arrays: PyTree) -> PyTree:
        """Places array shapes on the only device, so that a step of them is compiled for it."""
        place = SingleDeviceSharding(self.devices[0])
        return jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place), arrays
        )


def find_topology(name: str, chip: str | None = None) -> Topology:
    """Finds the devices of a topology.

    Jax registers the GPUs' compiler when it is first used, and only if its CUDA libraries are
    complete, unless the platform is "cpu" (``JAX_PLATFORMS=cpu``; ``goat-jax plan`` sets it).

    Args:
        name: ``cpu:N``; a TPU slice such as ``v5e:4x4`` (needs the extra `tpu`); or GPUs of one
            node, such as ``h100:8``, or of several, such as ``h100:2x8`` for two nodes of eight
            (needs the extra `plan-gpu`).
        chip: the key of `CHIPS` with the limits to use; None for those of the named chip.

    Raises:
        UserError: an unknown name, too few CPU devices, or no compiler for it.
    """
    kind, _, size = name.partition(":")
    limits = None if chip is None else find_chip(chip)
    if kind == "cpu" and size.isdigit() and int(size) > 0:
        return Topology(name, _cpus(int(size)), limits)
    if kind == "cpu" or not size:
        raise UserError(
            f"topology {name!r} is not valid: give cpu:N, a TPU slice such as v5e:4x4, or GPUs "
            "such as h100:8"
        )
    named_chip = find_chip(kind)
    devices = _tpus(name) if named_chip.cuda is None else _gpus(kind, size, named_chip)
    options = {} if named_chip.cuda is None else GPU_COMPILER
    return Topology(name, devices, limits or named_chip.of(devices[0]), options)


def _cpus(count: int) -> Sequence[Any]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"this process has {len(devices)} CPU devices, not {count}: set jax_num_cpu_devices "
            "before jax is used"
        )
    return devices[:count]


def _tpus(name: str) -> Sequence[Any]:
    import_extra("libtpu", f"a plan for {name}")
    return _described(name, platform="tpu", topology_name=name)


def _gpus(kind: str, size: str, chip: Chip) -> Sequence[Any]:
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)", size)
    nodes, each = (int(match[1] or 1), int(match[2])) if match else (0, 0)
    if nodes * each == 0:
        raise UserError(
            f"topology '{kind}:{size}' is not valid: give the number of GPUs, such as {kind}:8, or "
            f"nodes x GPUs, such as {kind}:2x8"
        )
    import_extra("jax_cuda12_plugin", f"a plan for {kind}:{size}")
    return _described(
        f"{kind}:{size}",
        platform="cuda",
        target_config=gpu_target(chip.kinds[0], chip),
        topology=f"1x{nodes}x{each}",
    )


def _described(name: str, **options: Any) -> Sequence[Any]:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(**options).devices
    except (RuntimeError, ValueError, ImportError, jax.errors.JaxRuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"the compiler has no devices {name} ({reason}): choose a size that exists, set "
            "TPU_SKIP_MDS_QUERY=1 for a TPU, or plan with --topology cpu:N --chip NAME"
        ) from error
