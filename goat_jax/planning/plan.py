"""Ahead-of-time compilation of a run's training step for a target topology, from shapes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.hardware.chips import Chip
from goat_jax.hardware.topologies import Topology
from goat_jax.planning.hlo_collectives import Exchange, collectives
from goat_jax.planning.remedies import Remedies, remedies
from goat_jax.planning.start import StartPlan, start_plan
from goat_jax.sharding.config import MeshConfig
from goat_jax.sharding.rules import ShardingRules, make_sharding_rules
from goat_jax.training.abstract_run import AbstractRun, abstract_run
from goat_jax.training.logging.flops import matmul_flops
from goat_jax.training.shardings import check_batches
from goat_jax.training.task_types import task_type_of


class DoesNotFit(UserError):
    """Raised if a step needs more memory than the devices have."""


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Resources that a training step needs.

    Attributes:
        devices: the number of devices.
        mesh: the mesh's size along each axis; empty on one device.
        rows: the number of rows in a batch, over all devices.
        arguments: the bytes per device of state, frozen base and batch.
        temporaries: the bytes per device that the step needs in addition.
        peak: the most bytes per device in use at one time: the larger of the compiler's figure, if
            it gives one, and the sum of arguments and temporaries.
        host: the bytes per device that wait in the host's memory (`model.remat` offload).
        exchanges: collective -> count and bytes per device and step.
        flops: the FLOPs of a step's matrix products, over all devices.
        trained: the number of trained parameters.
        total: the number of all parameters.
        attention: the line that names the kernel of the attention, or why it is refused; None for
            plain scores on a CPU.
        remedies: the options that would make the step smaller.
        start: the decompositions before the first step.
        tokens: the most tokens of a row; None if rows are images.
    """

    devices: int
    mesh: Mapping[str, int]
    rows: int
    arguments: int
    temporaries: int
    peak: int
    host: int
    exchanges: Mapping[str, Exchange]
    flops: int
    trained: int
    total: int
    attention: str | None = None
    remedies: Remedies = Remedies((), ())
    start: StartPlan = StartPlan(0, 0, 0)
    tokens: int | None = None

    def check_memory(self, memory: float) -> None:
        """Checks that the step fits into so many bytes per device.

        Raises:
            DoesNotFit: it does not; says by how much, and what to change.
        """
        if self.peak > memory:
            peak, most, over = (n / 2**30 for n in (self.peak, memory, self.peak - memory))
            raise DoesNotFit(
                f"the step does not fit into the devices' memory ({peak:.3f} of {most:.3f} GiB, "
                f"{over:.3f} over): try {self.remedies.text(self.arguments <= memory)}"
            )

    def roofline(self, chip: Chip) -> dict[str, float]:
        """Returns lower bounds in seconds on a step's compute, memory access and exchanges.

        Memory assumes that every argument and temporary is read or written once, and exchanges
        that every byte crosses the links once; between nodes they cross the network
        (`hlo_collectives.collectives`). The step takes at least the longest of them.
        """
        bounds = {
            "compute": self.flops / self.devices / chip.flops,
            "memory": (self.arguments + self.temporaries) / chip.bandwidth,
            "exchange": sum(e.bytes for e in self.exchanges.values()) / chip.links,
        }
        between = sum(e.network_bytes for e in self.exchanges.values())
        if chip.network is not None and between:
            bounds["network"] = between / chip.network
        return bounds


def plan(config: RunConfig, topology: Topology, model: str | Path | None = None) -> StepPlan:
    """Compiles the training step of a run for a topology; nothing is loaded or run.

    Args:
        config: the run's config. Its mesh must fit the topology; a mesh of one device becomes
            ``fsdp=-1`` if the topology has several.
        topology: the devices to compile for.
        model: the model whose sizes are used, as for `training.abstract_run.abstract_run`.

    Raises:
        UserError: a config that does not fit the mesh.
        DoesNotFit: the compiler knows that the devices have too little memory.
    """
    run, rules = planned_run(config, topology, model)
    smaller = remedies(config, rules)
    compiled = _compiled(run, topology, rules, smaller)
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    said = getattr(memory, "peak_memory_in_bytes", 0)
    return StepPlan(
        devices=len(topology.devices),
        mesh={} if rules is None else dict(rules.mesh.shape),
        rows=config.train.batch_size,
        arguments=arguments,
        temporaries=temporaries,
        peak=max(said, arguments + temporaries),
        host=getattr(memory, "host_temp_size_in_bytes", 0),
        exchanges=collectives(compiled.as_text(), _nodes(topology, rules)),
        flops=matmul_flops(run.train_step, run.state, run.base, run.batch),
        trained=run.inject_report.trained_parameters,
        total=run.inject_report.total_parameters,
        attention=run.attention,
        remedies=smaller,
        start=start_plan(config.adapter.spec(), run.inject_report),
        tokens=config.train.max_length if _has_tokens(config) else None,
    )


def planned_run(
    config: RunConfig, topology: Topology, model: str | Path | None = None
) -> tuple[AbstractRun, ShardingRules | None]:
    """Traces the run that `plan` compiles; the arguments and errors are those of `plan`.

    Returns:
        The run, and the sharding rules of its mesh; None for one device.
    """
    config, rules = _placed(config, topology)
    if rules is not None:
        check_batches(config, rules)
    return abstract_run(config, model, rules, topology.devices[0]), rules


def _compiled(
    run: AbstractRun, topology: Topology, rules: ShardingRules | None, smaller: Remedies
) -> Any:
    state, base, batch = run.state, run.base, run.batch
    if rules is None:
        state, base, batch = map(topology.on_one_device, (state, base, batch))
    lowered = run.train_step.lower(state, base, batch)
    try:
        return lowered.compile(dict(topology.options))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(
            f"the step does not fit into the devices' memory ({_exhausted(str(error))}): "
            f"try {smaller.text()}"
        ) from error


def _has_tokens(config: RunConfig) -> bool:
    return task_type_of(config.task).unit == "tokens"


def _exhausted(error: str) -> str:
    """Returns what the compiler says of the memory that is missing.

    >>> _exhausted("Ran out of memory in memory space hbm. Used 20.52G of 15.75G hbm. Exceeded "
    ...            "hbm capacity by 4.77G. Total hbm usage >= 20.77G:")
    '20.52G of 15.75G hbm, 4.77G over'
    """
    found = re.search(r"Used (\S+ of \S+ \w+).*? by (\S+?)\.?\s", error, re.DOTALL)
    return f"{found[1]}, {found[2]} over" if found else "exhausted"


def _nodes(topology: Topology, rules: ShardingRules | None) -> list[int]:
    """Returns the node of each device, in the mesh's order."""
    if rules is None:
        return [0]
    node_of = dict(zip(topology.devices, topology.nodes, strict=True))
    return [node_of[device] for device in rules.mesh.devices.flat]


def _placed(config: RunConfig, topology: Topology) -> tuple[RunConfig, ShardingRules | None]:
    if config.mesh.single and len(topology.devices) > 1:
        config = dataclasses.replace(config, mesh=MeshConfig(fsdp=-1, rules=config.mesh.rules))
    return config, make_sharding_rules(config.mesh, topology.devices)


def largest_rows(
    config: RunConfig,
    topology: Topology,
    memory: float,
    model: str | Path | None = None,
    *,
    peak_of: Callable[[RunConfig], int] | None = None,
    most: int = 4096,
) -> int:
    """Finds the most rows per micro-batch and batch shard with which the step still fits.

    Memory is nearly affine in the rows. So the next guess extrapolates the last two sizes that
    fitted; after one that does not fit, it is the middle of the remaining interval.

    Args:
        config: the run's config, as for `plan`.
        topology: the devices to compile for.
        memory: the bytes of memory per device.
        model: the model whose sizes are used, as for `plan`.
        peak_of: config -> peak bytes per device; None compiles each config.
        most: the largest number of rows to try.

    Returns:
        The number of rows, or 0 if not even one row fits.
    """
    config, rules = _placed(config, topology)
    unit = config.train.grad_accum_steps * (1 if rules is None else rules.batch_parts)
    peak_of = peak_of or (lambda config: plan(config, topology, model).peak)

    def peak(rows: int) -> float:
        sizes = {"batch_size": rows * unit, "eval_batch_size": rows * unit}
        train = dataclasses.replace(config.train, **sizes)
        try:
            return peak_of(dataclasses.replace(config, train=train))
        except DoesNotFit:
            return math.inf

    fitting: dict[int, float] = {}
    low, high, rows = 0, most + 1, 1
    while high - low > 1:
        needed = peak(rows)
        if needed <= memory:
            fitting[rows], low = needed, rows
            guess = _limit(fitting, memory)
        else:
            high, guess = rows, (low + rows) // 2
        rows = min(max(guess, low + 1), high - 1)
    return low


def _limit(fitting: Mapping[int, float], memory: float) -> int:
    """Extrapolates the most rows that fit, from the last two known peaks.

    With one known peak, or if the peak did not grow, it is twice the last number of rows.
    """
    *others, (rows, peak) = fitting.items()
    if not others or peak <= others[-1][1]:
        return 2 * rows
    before, less = others[-1]
    return rows + int((memory - peak) * (rows - before) / (peak - less))
