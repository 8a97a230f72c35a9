"""A run before it is paid for: its step compiled for devices that are not there, from shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from goat_jax.config import RunConfig
from goat_jax.mesh.config import MeshConfig
from goat_jax.mesh.placement import Placement, make_placement
from goat_jax.run.flops import matmul_flops
from goat_jax.run.hlo import Exchange, collectives
from goat_jax.run.placed import check_batches
from goat_jax.run.shapes import abstract_run
from goat_jax.run.topology import Chip, Topology


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step takes.

    Attributes:
        devices: how many.  mesh: their sizes by axis.
        rows: of a batch, over all devices.
        arguments: bytes per device of state, frozen base and batch.
        temporaries: bytes per device that the step needs besides.
        peak: bytes per device at most at one time, as the compiler says, or else the two together.
        exchanges: collective -> count and bytes per device and step.
        flops: of the matrix products of a step, over all devices.
        trained, total: parameters.
    """

    devices: int
    mesh: Mapping[str, int]
    rows: int
    arguments: int
    temporaries: int
    peak: int
    exchanges: Mapping[str, Exchange]
    flops: int
    trained: int
    total: int

    def roofline(self, chip: Chip) -> dict[str, float]:
        """Seconds that a step takes at least for its matrix products, its memory, its exchanges.

        Memory: every argument and temporary read or written once. Exchanges: every byte over the
        links once. The step takes at least the longest of the three.
        """
        return {
            "compute": self.flops / self.devices / chip.flops,
            "memory": (self.arguments + self.temporaries) / chip.bandwidth,
            "exchange": sum(e.bytes for e in self.exchanges.values()) / chip.links,
        }


def plan(config: RunConfig, topology: Topology, model: str | Path | None = None) -> Plan:
    """Compiles the training step of a run for a topology; nothing is loaded or run.

    Args:
        config: its mesh must fit the topology; one device's becomes ``fsdp=-1``.
        model: whose sizes to take, as for `run.shapes.abstract_run`.

    Raises:
        UserError: a config that does not fit.
    """
    config, placement = _placed(config, topology)
    if placement is not None:
        check_batches(config, placement)
    run = abstract_run(config, model, placement)
    compiled = run.train_step.lower(run.state, run.base, run.batch).compile()  # type: ignore
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    said = getattr(memory, "peak_memory_in_bytes", 0)
    return Plan(
        devices=len(topology.devices),
        mesh={} if placement is None else dict(placement.mesh.shape),
        rows=config.train.batch_size,
        arguments=arguments,
        temporaries=temporaries,
        peak=max(said, arguments + temporaries),
        exchanges=collectives(compiled.as_text()),
        flops=matmul_flops(run.train_step, run.state, run.base, run.batch),
        trained=run.inject_report.trained_parameters,
        total=run.inject_report.total_parameters,
    )


def _placed(config: RunConfig, topology: Topology) -> tuple[RunConfig, Placement | None]:
    if config.mesh.single and len(topology.devices) > 1:
        config = dataclasses.replace(config, mesh=MeshConfig(fsdp=-1, rules=config.mesh.rules))
    return config, make_placement(config.mesh, topology.devices)


def largest_rows(
    config: RunConfig,
    topology: Topology,
    memory: float,
    model: str | Path | None = None,
    *,
    peak_of: Callable[[RunConfig], int] | None = None,
    most: int = 4096,
) -> int:
    """Rows per micro-batch and row part of the mesh with which the step still fits, by bisection.

    Args:
        memory: bytes per device.
        peak_of: config -> bytes per device; compiles if None.
        most: the search ends there.

    Returns:
        0 if not even one row fits.
    """
    config, placement = _placed(config, topology)
    unit = config.train.accumulate * (1 if placement is None else placement.row_parts)
    peak_of = peak_of or (lambda config: plan(config, topology, model).peak)

    def fits(rows: int) -> bool:
        train = dataclasses.replace(
            config.train, batch_size=rows * unit, eval_batch_size=rows * unit
        )
        return peak_of(dataclasses.replace(config, train=train)) <= memory

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle <= most and fits(middle) else (low, middle)
    return low
