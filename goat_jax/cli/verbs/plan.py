"""``goat-jax plan``: compiles a training step ahead of time and prints its memory and cost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import jax

from goat_jax.cli.arguments.config import read_config
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.hardware.topologies import Topology, find_topology
from goat_jax.nn.stack import REMAT
from goat_jax.planning.plan import DoesNotFit, StepPlan, largest_rows
from goat_jax.planning.plan import plan as plan_run
from goat_jax.planning.start import CORE, SHARE
from goat_jax.text_tables import human_count, render_table


def plan(
    source: str,
    overrides: list[str],
    topology: str,
    *,
    chip: str | None = None,
    largest: bool = False,
    every_remat: bool = False,
    as_json: bool = False,
) -> int:
    """Prints the memory, communication and FLOPs of a training step on a topology.

    Args:
        source: the config file.
        overrides: ``--field value ...``, which override the config file.
        topology: the devices to compile for, such as ``cpu:16`` or ``v5e:4x4``.
        chip: the chip whose peaks and memory are assumed, such as ``v5e``; None for the topology's.
        largest: whether to search for the largest micro-batch that fits, too.
        every_remat: whether to compare all policies of `model.remat` instead.
        as_json: whether to print JSON.

    Returns:
        The exit code.

    Raises:
        DoesNotFit: the devices have too little memory; the figures are printed if there are any.
    """
    kind, _, size = topology.partition(":")
    _only_cpus(int(size) if kind == "cpu" and size.isdigit() else 1)
    config = read_config(source, overrides, "goat-jax plan")
    target = find_topology(topology, chip)
    if every_remat:
        steps = {name: _step_or_none(config, target, name) for name in REMAT}
        values = {name: step and as_values(step, target, None) for name, step in steps.items()}
        print(json.dumps(values) if as_json else remat_table(steps))
        return 0
    step = plan_run(config, target)
    rows = None
    if largest:
        if target.chip is None:
            raise UserError(
                "--largest-batch needs the device's memory: add --chip NAME, such as v5e"
            )
        rows = largest_rows(config, target, target.chip.memory)
    print(json.dumps(as_values(step, target, rows)) if as_json else report(step, target, rows))
    if target.chip is not None:
        step.check_memory(target.chip.memory)
    return 0


def _only_cpus(count: int) -> None:
    """Gives this process `count` CPU devices and no others, unless jax has started already.

    A plan computes nothing, so it needs no accelerator; without this, libtpu would look for a TPU.
    """
    try:
        jax.config.update("jax_num_cpu_devices", max(1, count))
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:
        return  # `find_topology` says what is missing


def as_values(step: StepPlan, target: Topology, rows: int | None) -> dict:
    """Returns all figures of a plan by name.

    Args:
        step: the plan.
        target: the topology that it was made for.
        rows: the largest number of rows per part of the batch, or None if not searched for.
    """
    values = dataclasses.asdict(step)
    values |= {"remedies": step.remedies.text(), "topology": target.name}
    if target.chip is not None:
        values["roofline_seconds"] = step.roofline(target.chip)
        if target.chip.cuda is not None:
            values["start_seconds"] = step.start.seconds(target.chip, step.devices)
    return values if rows is None else values | {"largest_rows_per_part": rows}


def report(step: StepPlan, target: Topology, rows: int | None) -> str:
    """Returns the figures of a plan as text.

    Args:
        step: the plan.
        target: the topology that it was made for.
        rows: the largest number of rows per part of the batch, or None if not searched for.
    """
    sizes = " x ".join(f"{name} {size}" for name, size in step.mesh.items()) or "no mesh"
    length = f" of {step.tokens:,} tokens" if step.tokens else ""
    lines = [
        f"{_several(step.devices, 'device')} of {target.name}, {sizes}; "
        f"{_several(step.rows, 'row')}{length} a step; trained "
        f"{human_count(step.trained)} of {human_count(step.total)} parameters",
        *([step.attention] if step.attention else []),
        "",
        render_table(
            ["bytes per device", "GiB"],
            [
                ["state, frozen base, batch", _gib(step.arguments)],
                ["temporaries", _gib(step.temporaries)],
                ["peak", _gib(step.peak)],
            ],
        ),
        "",
        render_table(
            ["exchange", "runs a step", "GiB per device"],
            [[name, e.count, _gib(e.bytes)] for name, e in step.exchanges.items()]
            or [["none", "", ""]],
        ),
        "",
        f"matrix products: {step.flops:.3e} FLOPs a step, "
        f"{step.flops / step.devices:.3e} per device",
    ]
    if target.chip is not None:
        bounds = step.roofline(target.chip)
        slowest = max(bounds, key=lambda name: bounds[name])
        each = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in bounds.items())
        lines.append(f"at least {bounds[slowest] * 1e3:.1f} ms a step, by {slowest} ({each})")
        if step.tokens:
            most = step.rows * step.tokens / bounds[slowest]
            lines.append(f"at most {most:,.0f} tokens/s, {most / step.devices:,.0f} per device")
        if step.peak <= target.chip.memory:
            lines.append(f"fits into {_gib(target.chip.memory)} GiB")
    lines += _start(step, target)
    if rows is not None:
        lines.append(f"largest micro-batch that fits: {rows} rows per data-parallel part")
    return "\n".join(lines)


def _step_or_none(config: RunConfig, target: Topology, remat: str) -> StepPlan | None:
    try:
        model = dataclasses.replace(config.model, remat=remat)
        return plan_run(dataclasses.replace(config, model=model), target)
    except DoesNotFit:
        return None


def remat_table(steps: Mapping[str, StepPlan | None]) -> str:
    """Returns a table of bytes against recomputed FLOPs.

    Args:
        steps: the policy of `model.remat` -> its plan, or None for one that does not fit.
    """
    least = min((step.flops for step in steps.values() if step), default=0)
    rows = [
        [
            name,
            *map(_gib, (step.arguments, step.temporaries, step.peak, step.host)),
            f"{step.flops:.3e}",
            f"{step.flops / least - 1:.1%}",
        ]
        if step
        else [name, *["does not fit"] * 3, "", "", ""]
        for name, step in steps.items()
    ]
    head = ["state, base, batch", "temporaries", "together", "on the host", "FLOPs", "recomputed"]
    return render_table(["model.remat, GiB per device", *head], rows)


def _start(step: StepPlan, target: Topology) -> list[str]:
    """Describes the decompositions before the first step; no lines if there are none."""
    start = step.start
    if not start.kernels:
        return []
    line = f"start: {start.kernels} kernels to decompose once"
    if target.chip is None or target.chip.cuda is None:
        return [
            f"{line} on the hosts, {start.host_flops:.3e} FLOPs, about {start.core_hours:.1f} "
            f"hours of one core (an estimate: {CORE / 1e9:.0f} GFLOP/s are assumed)"
        ]
    seconds = start.seconds(target.chip, step.devices)
    return [
        f"{line}, {start.flops:.3e} FLOPs, about {seconds:.0f} s "
        f"(an estimate: {SHARE:.1%} of the peak is assumed)"
    ]


def _several(count: int, noun: str) -> str:
    """Returns a count with its noun.

    >>> _several(1, "row"), _several(8, "row")
    ('1 row', '8 rows')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _gib(size: float) -> str:
    return f"{size / 2**30:.3f}"
