"""``goat-jax bench``: the cost of adapters on this device, as ratios within one process."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from goat_jax.adapters.methods import method_spec
from goat_jax.bench.accelerator.parts import PARTS
from goat_jax.bench.accelerator.rows import Row, Settings, markdown
from goat_jax.bench.accelerator.suite import PartResult, run_parts
from goat_jax.bench.decompositions import SEGMENTS, measure_decompositions
from goat_jax.bench.decompositions import SIZES as KERNEL_SIZES
from goat_jax.bench.layer import SIZES, Size, contenders, measure_growth, measure_layer
from goat_jax.bench.measured import Measured
from goat_jax.bench.steps import measure_steps
from goat_jax.bench.turns import machine, machine_line
from goat_jax.cli.verbs.compare import entry_config, read_entries
from goat_jax.config.run import DTYPES
from goat_jax.errors import UserError
from goat_jax.extras import skipped_without_extra
from goat_jax.files import write_whole
from goat_jax.injection.svd_cache import ROUTES
from goat_jax.models.known_sizes import model_config
from goat_jax.plots.growth import plot_growth, slope
from goat_jax.text_tables import render_table
from goat_jax.validation.checks import check_choice

MINUTES = {False: 10.0, True: 60.0}
"""Whether the sizes are tiny -> most minutes of the suite for an accelerator.

With tiny sizes nothing is measured, and a busy machine should not end a part."""

HEADERS = ["work", "method", "median s", "ratio", "temporary MiB", "ratio", "GFLOP"]


def bench(options: argparse.Namespace, overrides: list[str]) -> int:
    """Measures, prints a table, and writes all numbers as JSON if ``--out`` gives a folder.

    Args:
        options: the parsed arguments of ``goat-jax bench``.
        overrides: ``--field value ...``, for ``bench step`` only.

    Returns:
        The exit code.

    Raises:
        UserError: arguments that do not fit this kind of benchmark.
    """
    _check_options(options)
    if options.what == "accelerator":
        _no_overrides(overrides)
        return accelerator(options)
    options.turns = options.turns or (1 if options.what == "start" else 9)
    print(machine_line())
    kinds = {"layer": _layers, "step": _steps, "growth": _growth, "start": _starts}
    figures = kinds[options.what](options, overrides)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine(), "turns": options.turns, **figures}, indent=1)
        write_whole(options.out / f"bench_{options.what}.json", text + "\n")
        print(f"\nall figures are in {options.out}")
    return 0


def _check_options(options: argparse.Namespace) -> None:
    """Raises `UserError` for an option that another kind of benchmark has."""
    owners = {
        "config": ("step",),
        "model": ("step", "accelerator"),
        "minutes": ("accelerator",),
        "tiny": ("accelerator",),
        "parts": ("accelerator",),
        "routes": ("start",),
    }
    for name, kinds in owners.items():
        if getattr(options, name) and options.what not in kinds:
            raise UserError(
                f"bench {options.what} takes no --{name}: bench {' and '.join(kinds)} does"
            )


def accelerator(options: argparse.Namespace) -> int:
    """Runs the suite for an accelerator; writes its table after every part.

    Args:
        options: the parsed arguments of ``goat-jax bench``.

    Returns:
        The exit code: 1 if a part failed.
    """
    settings = Settings(
        **{"model": options.model} if options.model else {},
        rank=options.rank,
        turns=options.turns or Settings.turns,
        tiny=options.tiny,
    )
    if not options.tiny:
        model_config(settings.model)  # an unknown name is an error before anything starts
    for part in options.parts or ():
        check_choice("--parts", part, tuple(PARTS))
    minutes = options.minutes or MINUTES[options.tiny]
    done: list[PartResult] = []
    rows: list[Row] = []
    machine: dict[str, Any] = {}
    for result in run_parts(options.parts or tuple(PARTS), settings, 60 * minutes):
        done.append(result)
        failed = result.rows[-1].remark if result.rows[-1].failed else "done"
        print(f"{result.part}: {failed} ({result.seconds:.0f} s)", flush=True)
        rows = [row for each in done for row in each.rows]
        machine = machine or result.machine
        if options.out is not None:
            _write_suite(options.out, settings, machine, done)
    print("\n" + "  ".join(f"{name}: {value}" for name, value in machine.items()) + "\n")
    print(markdown(rows))
    if options.out is not None:
        print(f"\nall figures are in {options.out}")
    return int(any(row.failed for row in rows))


def _write_suite(
    folder: Path, settings: Settings, machine: dict[str, Any], done: list[PartResult]
) -> None:
    """Writes bench_accelerator.md and bench_accelerator.json with the parts done so far."""
    rows = [row for each in done for row in each.rows]
    values = {
        "machine": machine,
        "settings": dataclasses.asdict(settings),
        "seconds": {each.part: each.seconds for each in done},
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "bench_accelerator.json", json.dumps(values, indent=1) + "\n")
    write_whole(folder / "bench_accelerator.md", markdown(rows) + "\n")


def _layers(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    _no_overrides(overrides)
    rows: list[Measured] = []
    for size in _sizes(options.size) or SIZES:
        rows += measure_layer(
            size, contenders(options.rank), DTYPES[options.dtype], turns=options.turns
        )
    print(f"\nforward and backward, {options.dtype}, total rank {options.rank}\n")
    print(table(rows))
    return {"dtype": options.dtype, "rank": options.rank, "layers": _json(rows)}


def _steps(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    if options.config is None:
        raise UserError(
            "bench step needs --config FILE, which gives the model's sizes and the batch"
        )
    entries = read_entries(options.methods)
    configs = {
        entry.label: entry_config(options.config, entry, overrides, "goat-jax bench")
        for entry in entries
    }
    steps = measure_steps(configs, options.model, turns=options.turns)
    print(f"\noptimizer steps of {options.config}\n")
    print(table(steps.measured))
    shares = {one.name: steps.share_of_peak(one) for one in steps.measured}
    print(
        f"\na plain matrix product reaches {steps.peak / 1e9:,.0f} GFLOP/s; share of that per step:"
    )
    print("  ".join(f"{name}: {share:.0%}" for name, share in shares.items()))
    return {"steps": _json(steps.measured), "peak": steps.peak, "shares": shares}


def _growth(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    _no_overrides(overrides)
    size = (_sizes(options.size) or [Size(1024, 1024, 1024)])[0]
    entry = read_entries(options.methods)[-1]
    spec, method = method_spec(entry.method, **entry.options), entry.label
    growth = measure_growth(size, spec, (8, 16, 32, 64, 128), (4, 8, 16, 32), turns=options.turns)
    rows = [
        [axis, value, one.seconds, one.temporaries / 2**20]
        for axis, points in growth.items()
        for value, one in points
    ]
    print(f"\n{method}, layer of {size}\n")
    print(render_table(["axis", "size", "median s", "temporary MiB"], rows))
    points = {
        axis: [(n, one.seconds, one.temporaries) for n, one in of] for axis, of in growth.items()
    }
    slopes = {}
    for what, place in (("time", 1), ("temporaries", 2)):
        slopes[what] = {
            axis: slope([p[0] for p in of], [p[place] for p in of]) for axis, of in points.items()
        }
        powers = "  ".join(f"{axis}: {power:.2f}" for axis, power in slopes[what].items())
        print(f"\nexponents of {what}:  {powers}")
    if options.out is not None:
        with skipped_without_extra("growth.png"):
            plot_growth(points, options.out / "growth.png", title=f"{method}, layer of {size}")
    measured = {axis: _json([one for _, one in points]) for axis, points in growth.items()}
    return {"method": method, "growth": measured, "slopes": slopes}


def _starts(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    _no_overrides(overrides)
    routes = options.routes or ("gram", *(name for name in ROUTES if name != "gram"))
    for route in routes:
        check_choice("--routes", route, tuple(ROUTES))
    sizes = [
        tuple(_numbers(word, "IN,OUT, such as 1024,4096", 2)) for word in options.size
    ] or KERNEL_SIZES
    found = [
        one
        for rows, columns in sizes
        for one in measure_decompositions(rows, columns, routes=routes, turns=options.turns)
    ]
    headers = ["kernel", "route", "GFLOP", "seconds", "share"]
    headers += [f"residual, {name}" for name in SEGMENTS]
    headers += [f"product, {name}" for name in SEGMENTS]
    cells = [
        [
            one.kernel,
            f"{one.route}, by the host" if one.on_host else one.route,
            f"{one.flops / 1e9:.3g}",
            f"{one.seconds:.3g}",
            f"{one.share:.1%}",
            *(f"{number:.1e}" for number in (*one.residuals.values(), *one.products.values())),
        ]
        for one in found
    ]
    print("\nshare: of the FLOP/s of a plain float32 product; residual: over the largest value\n")
    print(render_table(headers, cells, "ll" + "r" * (len(headers) - 2), markdown=True))
    return {"decompositions": [dataclasses.asdict(one) for one in found]}


def table(rows: list[Measured] | tuple[Measured, ...]) -> str:
    """Returns a Markdown table with one row per measurement."""
    cells = [
        [
            row.size,
            row.name,
            f"{row.seconds:.4f}",
            f"{row.ratio:.3f}",
            f"{row.temporaries / 2**20:.1f}",
            f"{row.temporaries_ratio:.3f}",
            f"{row.flops / 1e9:.2f}",
        ]
        for row in rows
    ]
    return render_table(HEADERS, cells, "llrrrrr", markdown=True)


def _sizes(words: list[str]) -> list[Size]:
    return [Size(*_numbers(word, "TOKENS,IN,OUT, such as 2048,1024,4096")) for word in words]


def _numbers(word: str, form: str, count: int = 3) -> list[int]:
    numbers = word.split(",")
    if len(numbers) != count or not all(n.isdigit() and int(n) > 0 for n in numbers):
        raise UserError(f"size {word!r} is not {form}")
    return list(map(int, numbers))


def _no_overrides(overrides: list[str]) -> None:
    if overrides:
        raise UserError(f"{' '.join(overrides)}: only bench step takes fields of a config")


def _json(rows: list[Measured] | tuple[Measured, ...]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(row) for row in rows]
