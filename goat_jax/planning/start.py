"""Cost of a run's initialization: the decompositions of the kernels that get an adapter."""

from __future__ import annotations

import dataclasses

from goat_jax.adapters.adapter import needs_svd
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.gram_svd import gram_flops
from goat_jax.core.svd import svd_flops
from goat_jax.hardware.chips import Chip
from goat_jax.injection.report import InjectReport

SHARE = 1 / 15 * 0.08
"""Assumed share of a chip's peak that decompositions reach. Float32 products have 1/15 of the
bfloat16 peak on an H100, and of a float32 product's rate a decomposition reached
8% on a CPU (`goat-jax bench start`). No accelerator has been measured."""

CORE = 40e9
"""Assumed FLOP/s in float64 of one core of a host: a decomposition on two cores of an AMD EPYC
reached 75e9 to 92e9."""


@dataclasses.dataclass(frozen=True)
class StartPlan:
    """Decompositions that a run needs before its first step, if none is cached.

    Attributes:
        kernels: the number of kernels to decompose.
        flops: their FLOPs by `core.gram_svd.gram_flops`, over all devices.
        host_flops: their FLOPs by `core.svd.svd_flops`, where hosts decompose, as those of TPUs do.
    """

    kernels: int
    flops: int
    host_flops: int

    def seconds(self, chip: Chip, devices: int) -> float:
        """Returns an estimate of the seconds, from the chip's peak and `SHARE`.

        Each kernel is decomposed by one device, so no more devices help than there are kernels.
        """
        return self.flops / min(devices, max(1, self.kernels)) / (SHARE * chip.flops)

    @property
    def core_hours(self) -> float:
        """An estimate of the hours that one core of a host would need, from `CORE`."""
        return self.host_flops / CORE / 3600


def start_plan(spec: AdapterSpec, report: InjectReport) -> StartPlan:
    """Counts the decompositions of a run.

    Args:
        spec: the run's method; overrides of single modules are taken to need as much.
        report: the modules that have an adapter.
    """
    shapes = [
        row.shape
        for row in report.rows
        if row.what == "adapter" and needs_svd(spec)
        for _ in row.layers or range(1)
    ]
    return StartPlan(
        len(shapes),
        sum(gram_flops(*shape) for shape in shapes),
        sum(svd_flops(*shape) for shape in shapes),
    )
