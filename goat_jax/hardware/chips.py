"""Limits of accelerators from their makers' data sheets, for plans and for utilization."""

from __future__ import annotations

import dataclasses
from typing import Any

from goat_jax.errors import UserError, nearest

MIB, GIB = 2**20, 2**30


@dataclasses.dataclass(frozen=True)
class Cuda:
    """Properties of an NVIDIA GPU that its compiler asks for.

    Attributes:
        capability: the compute capability, as (major, minor).
        multiprocessors: the number of streaming multiprocessors.
        cache: the L2 cache in bytes.
        clock: the boost clock in GHz.
    """

    capability: tuple[int, int]
    multiprocessors: int
    cache: int
    clock: float


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of one chip or of one of its devices.

    Attributes:
        kinds: the prefixes of jax's device kinds that mean this chip.
        flops: the peak dense bfloat16 FLOP/s of matrix products, accumulated in float32.
        memory: the device memory in bytes.
        bandwidth: the memory bandwidth in bytes per second.
        links: the bandwidth to the other chips of a slice or node in bytes per second, all links
            together, one way.
        network: the bandwidth between nodes in bytes per second for each chip; None for a TPU,
            whose slices have no slower link.
        cores: the number of TensorCores of a TPU chip. jax may present each one as a device.
        cuda: the properties of an NVIDIA GPU; None for a TPU.
    """

    kinds: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    links: float
    network: float | None = None
    cores: int = 1
    cuda: Cuda | None = None

    def of(self, device: Any) -> Chip:
        """Returns the limits of one jax device: the chip's, or those of one of its cores.

        >>> import types
        >>> core = types.SimpleNamespace(num_cores=1)
        >>> CHIPS["v5p"].of(core).flops / CHIPS["v5p"].flops
        0.5
        """
        share = getattr(device, "num_cores", self.cores) / self.cores
        names = ("flops", "memory", "bandwidth", "links")
        return dataclasses.replace(self, **{name: share * getattr(self, name) for name in names})


PCIE = 32e9
"""PCIe 4.0 x16, one way: the link of cards without NVLink."""

CHIPS = {
    "v4": Chip(("TPU v4",), 275e12, 32 * GIB, 1200e9, 300e9, cores=2),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(("TPU v5",), 459e12, 95 * GIB, 2765e9, 600e9, cores=2),
    "v6e": Chip(("TPU v6",), 918e12, 32 * GIB, 1638e9, 400e9),
    "tpu7x": Chip(("TPU7x", "TPU v7"), 2307e12, 192 * GIB, 7380e9, 600e9, cores=2),
    "a100": Chip(
        ("NVIDIA A100",), 312e12, 81920 * MIB, 2039e9, 300e9, 25e9,
        cuda=Cuda((8, 0), 108, 40 * MIB, 1.41),
    ),
    "h100": Chip(
        ("NVIDIA H100",), 989e12, 81559 * MIB, 3350e9, 450e9, 50e9,
        cuda=Cuda((9, 0), 132, 50 * MIB, 1.98),
    ),
    "h200": Chip(
        ("NVIDIA H200",), 989e12, 143771 * MIB, 4800e9, 450e9, 50e9,
        cuda=Cuda((9, 0), 132, 50 * MIB, 1.98),
    ),
    "b200": Chip(
        ("NVIDIA B200",), 2250e12, 183359 * MIB, 7700e9, 900e9, 50e9,
        cuda=Cuda((10, 0), 148, 126 * MIB, 1.97),
    ),
    "l40s": Chip(
        ("NVIDIA L40S",), 362e12, 46068 * MIB, 864e9, PCIE, 12.5e9,
        cuda=Cuda((8, 9), 142, 96 * MIB, 2.52),
    ),
    "l4": Chip(
        ("NVIDIA L4",), 121e12, 23034 * MIB, 300e9, PCIE, 12.5e9,
        cuda=Cuda((8, 9), 58, 48 * MIB, 2.04),
    ),
    "rtx4090": Chip(
        ("NVIDIA GeForce RTX 4090",), 165e12, 24564 * MIB, 1008e9, PCIE, 12.5e9,
        cuda=Cuda((8, 9), 128, 72 * MIB, 2.52),
    ),
}  # fmt: skip
"""Chip name, as in ``v5e:4x4`` or ``h100:8`` -> the chip's limits.

Sources: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x (links: half of the
bidirectional figure); NVIDIA's data sheets of the SXM modules A100 80GB, H100, H200 and B200 and of
the cards L40S and L4, and its Ada whitepaper for the RTX 4090 (dense figures, half of those "with
sparsity"). A GPU's memory is what its driver reports. Between nodes: one adapter of 200 (A100) or
400 Gb/s for each GPU, as in NVIDIA's DGX machines; 100 Gb/s is assumed for cards.
"""


def find_chip(name: str) -> Chip:
    """Returns a chip of `CHIPS` by its name.

    Raises:
        UserError: no such chip.
    """
    if name not in CHIPS:
        raise UserError(
            f"chip {name!r} is not known{nearest(name, CHIPS)}: choose from {', '.join(CHIPS)}"
        )
    return CHIPS[name]


def chip_of(device: Any) -> Chip | None:
    """Returns the limits of a jax device, by the longest prefix of its kind; None if unknown.

    >>> import types
    >>> chip_of(types.SimpleNamespace(device_kind="NVIDIA L40S")).flops / 1e12
    362.0
    """
    kind = device.device_kind
    by_kind = {start: chip for chip in CHIPS.values() for start in chip.kinds}
    longest = max(filter(kind.startswith, by_kind), key=len, default=None)
    return None if longest is None else by_kind[longest].of(device)
