"""Target topologies for ahead-of-time compilation, and their chips' memory, FLOP/s, bandwidth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from goat_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of one device, from its maker's data sheet.

    Attributes:
        flops: the peak bfloat16 FLOP/s of matrix products.
        memory: the device memory in bytes.
        bandwidth: the memory bandwidth in bytes per second.
        links: the bandwidth to other chips in bytes per second, all links together, one way.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
    "a100": Chip(312e12, 80 * 2**30, 2039e9, 300e9),
    "h100": Chip(989e12, 80 * 2**30, 3350e9, 450e9),
}
"""Chip name, as in ``v5e:4x4`` -> the chip's limits.

Sources: docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (links: half of the bidirectional
figure), and NVIDIA's data sheets of the SXM modules with 80 GB.
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: the topology's name, such as ``v5e:4x4``.
        devices: real CPU devices, or device descriptions from the TPU compiler.
        chip: the limits of each device; None if unknown.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None


def find_topology(name: str, chip: str | None = None) -> Topology:
    """Finds the devices of ``cpu:N`` or of a TPU slice such as ``v5e:4x4`` (the extra `tpu`).

    Args:
        name: the topology's name.
        chip: the key of `CHIPS` with the limits to use; None for those of the slice's chip.

    Raises:
        UserError: an unknown name, too few CPU devices, or no compiler for it.
    """
    kind, _, size = name.partition(":")
    known = chip or (kind if kind in CHIPS else None)
    if known is not None and known not in CHIPS:
        raise UserError(
            f"chip {known!r} is not known{nearest(known, CHIPS)}: choose from {', '.join(CHIPS)}"
        )
    limits = None if known is None else CHIPS[known]
    if kind == "cpu" and size.isdigit() and int(size) > 0:
        return Topology(name, _cpus(int(size)), limits)
    if kind in CHIPS and size and kind.startswith("v"):
        return Topology(name, _described(name), limits)
    raise UserError(f"topology {name!r} is not valid: give cpu:N or a TPU slice such as v5e:4x4")


def _cpus(count: int) -> Sequence[Any]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"this process has {len(devices)} CPU devices, not {count}: set jax_num_cpu_devices "
            "before jax is used"
        )
    return devices[:count]


def _described(name: str) -> Sequence[Any]:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(name, "tpu").devices
    except (RuntimeError, ValueError, ImportError, jax.errors.JaxRuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"no compiler for {name} ({reason}): install libtpu and set TPU_SKIP_MDS_QUERY=1, or "
            "plan with --topology cpu:N --chip NAME"
        ) from error
