"""``goat-jax inspect``: prints what a run or a config trains, and a run's scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.config.files import load_config
from goat_jax.config.run import RunConfig
from goat_jax.core.svd import share_of_spectrum
from goat_jax.injection.report import InjectReport
from goat_jax.models.load import load_model
from goat_jax.nn.named_modules import find_modules
from goat_jax.pretrained.resolve import find_model
from goat_jax.text_tables import human_count, render_table
from goat_jax.training.abstract_run import AbstractRun, abstract_run
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.training.checks import model_options
from goat_jax.training.logging.metrics_log import read_records


def inspect(folder: Path) -> int:
    """Prints a run's trained modules, its kernels' spectra, its scores and its expert load."""
    config, _ = load_run(folder)
    sizes = abstract_run(config, find_model(config.model.path))
    print(trained(sizes))
    print()
    print(spectrum_table(config))
    records = read_records(folder)
    print()
    print(score_table([record for record in records if record["kind"] == "eval"]))
    loads = [record for record in records if record["kind"] == "load"]
    if loads:
        print()
        print(load_table(loads[-1]))
    return 0


def inspect_config(source: str, model: str | None) -> int:
    """Prints what a run of a config would train; reads the model's config alone, no weights.

    Args:
        source: the config file.
        model: the name or folder of another model than the config's, or None.

    Returns:
        The exit code.
    """
    print(trained(abstract_run(load_config(source), model)))
    return 0


def trained(run: AbstractRun) -> str:
    """Returns the table of a run's modules, and the line on its attention's kernel, if any."""
    return "\n".join(filter(None, (trainable_table(run.inject_report), run.attention)))


def trainable_table(report: InjectReport) -> str:
    """Returns a table of the modules that are adapted, trained in full or frozen, and why."""
    rows = [
        [
            row.name,
            "-" if row.layers is None else f"{row.layers.start}-{row.layers.stop - 1}",
            f"{row.shape[0]} x {row.shape[1]}",
            row.what,
            f"{row.trained:,}",
            row.reason,
        ]
        for row in report.rows
    ]
    table = render_table(["module", "layers", "in x out", "is", "trained", "why"], rows)
    total = (
        f"adapters {report.adapter_parameters:,} + heads {report.head_parameters:,} of "
        f"{human_count(report.total_parameters)} parameters "
        f"({report.trained_parameters / report.total_parameters:.2%}); adapters are "
        f"{report.adapter_share:.2%} of the pretrained {human_count(report.pretrained_parameters)}"
    )
    return f"{table}\n{total}"


def spectrum_table(config: RunConfig) -> str:
    """Returns a table with the largest, median and smallest singular value of every linear module,
    and the share of energy in as many top values as the total rank."""
    import jax

    model = load_model(
        find_model(config.model.path), key=jax.random.key(0), **model_options(config)
    ).model
    rank = config.adapter.spec().total_rank
    rows = []
    for ref in find_modules(model):
        kernel = np.asarray(ref.module.kernel[...], np.float32)
        values = np.linalg.svd(kernel.reshape(-1, *kernel.shape[-2:]), compute_uv=False)
        top = [share_of_spectrum(s, np.arange(min(rank, len(s)))[None]) for s in values]
        rows.append(
            [
                ref.pattern,
                f"{values[:, 0].mean():.3f}",
                f"{np.median(values):.3f}",
                f"{values[:, -1].mean():.2e}",
                f"{np.mean(top):.1%}",
            ]
        )
    return render_table(
        ["module (mean over layers)", "largest", "median", "smallest", f"energy in top {rank}"],
        rows,
    )


def score_table(records: list[dict[str, Any]]) -> str:
    """Returns a table with the scores of every evaluation of the run."""
    skipped = {"kind", "step", "split", "seconds"}
    names = [name for name in (records[0] if records else {}) if name not in skipped]
    rows = [[r["step"], *(_number(r.get(name)) for name in names)] for r in records]
    return render_table(["step", *names], rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"  # None: the score was not finite


def load_table(record: dict[str, Any]) -> str:
    """Returns a table with the mean share of tokens per expert and the most uneven layer."""
    rows = []
    for name, layers in record["modules"].items():
        shares = np.asarray(layers)
        even = 1 / shares.shape[-1]
        worst = int(np.argmax(shares.max(-1)))
        rows.append(
            [
                name,
                " ".join(f"{share:.0%}" for share in shares.mean(0)),
                f"{shares.max() / even:.1f}x even share in layer {worst}",
            ]
        )
    return render_table([f"expert load, step {record['step']}", "mean", "highest"], rows)
