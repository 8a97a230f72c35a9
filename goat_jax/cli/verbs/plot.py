"""``goat-jax plot``: draws every picture of a run, as PNG files and on one page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.analysis.run_data import (
    batch_of_image,
    batch_of_text,
    router_entropies,
    routes,
    spectra,
    update_norms,
)
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.files import write_whole
from goat_jax.plots import plot_expert_load, plot_training
from goat_jax.plots.curves import Panel, plot_curves
from goat_jax.plots.heatmaps import Scale, plot_heatmaps
from goat_jax.plots.page import Section, render_page
from goat_jax.plots.spectra import plot_spectra
from goat_jax.plots.style import short_names
from goat_jax.plots.tokens import plot_patches, plot_tokens
from goat_jax.training.checkpoints.restore import Reopened, restore_run
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.training.data import evaluation_batches, load_rows
from goat_jax.training.logging.metrics_log import read_records, training_series
from goat_jax.typing import Batch

PAGE, PICTURES = "report.html", "plots"
Records = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Options of the pictures: the checkpoint and the input to draw.

    Attributes:
        step: the checkpoint's step; None for the best checkpoint.
        text: the text whose tokens are drawn with their experts; None for an evaluation row.
        image: the image whose patches are drawn with their experts; None for an evaluation row.
        row: the number of the evaluation row.
        records_only: whether to draw from the records alone, without loading the model.
    """

    step: int | None = None
    text: str | None = None
    image: Path | None = None
    row: int = 0
    records_only: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """One kind of picture.

    Attributes:
        name: the picture's file name, without ending.
        heading: the heading on the page.
        text: the explanation below the heading.
        draw: (records or opened run, file) -> None; raises `_Missing` if the run lacks the data.
    """

    name: str
    heading: str
    text: str
    draw: Callable[[Any, Path], None]


def plot(folder: Path, choice: Choice) -> Path:
    """Draws a run to RUN/plots/*.png and RUN/report.html; returns the page.

    Raises:
        UserError: no run there, no such checkpoint, or a text for a model that reads images.
    """
    config, saved = load_run(folder)
    records = read_records(folder)
    # Before the first picture, so that a wrong choice is refused at once.
    opened = None if choice.records_only else _open(folder, choice)
    sections = [_section(picture, records, folder / PICTURES) for picture in OF_RECORDS]
    step = max((record["step"] for record in records), default=0)
    if opened is not None:
        step = opened.run.step
        sections += [_section(picture, opened, folder / PICTURES) for picture in OF_CHECKPOINT]
    page = render_page(
        f"Run {folder.resolve().name}", facts(config, saved, records, step), sections
    )
    write_whole(folder / PAGE, page)
    return folder / PAGE


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run opened at a checkpoint, with the input whose routing is drawn.

    Attributes:
        run: the run, restored at the checkpoint.
        batch: a batch of one row; None if the method has one expert.
        tokens: the row's tokens as text; empty for an image.
    """

    run: Reopened
    batch: Batch | None = None
    tokens: Sequence[str] = ()


def _open(folder: Path, choice: Choice) -> Opened:
    run = restore_run(folder, choice.step, factors=True)
    if run.config.adapter.spec().num_experts < 2:
        return Opened(run)
    if run.setup.vocabulary is None and choice.text is None:
        return Opened(run, batch_of_image(run, choice.image, choice.row))
    if choice.image is not None:
        raise UserError("this run's model reads texts: give --text or --row, not --image")
    return Opened(run, *batch_of_text(run, choice.text, choice.row))


def _section(picture: Picture, source: Any, folder: Path) -> Section:
    path = folder / f"{picture.name}.png"
    try:
        picture.draw(source, path)
    except _Missing as missing:
        path.unlink(missing_ok=True)  # a picture of an earlier call would be out of date
        return Section(picture.heading, f"Not drawn: {missing}.")
    return Section(picture.heading, picture.text, path.read_bytes())


class _Missing(Exception):
    """Raised if a run lacks the data that a picture shows."""


def facts(
    config: RunConfig, saved: Mapping[str, Any], records: Records, step: int
) -> dict[str, str]:
    """Returns the facts at the top of the page: task, model, method, sizes and last scores."""
    evals = [record for record in records if record["kind"] == "eval"]
    names = ("loss", *config.task.metrics)
    scores = [
        f"{name} {evals[-1][name]:.4f}"
        for name in names
        if evals and evals[-1].get(name) is not None
    ]
    adapter = config.adapter.spec()
    return {
        "task": config.task.name,
        "model": config.model.path,
        "method": f"{config.adapter.method}, total rank {adapter.total_rank}, "
        f"{adapter.num_experts} experts, {adapter.top_k} active",
        "trained parameters": f"{saved['trained_parameters']:,}",
        "steps": f"{config.train.total_steps:,}; the checkpoint shown is of step {step:,}",
        "last evaluation": ", ".join(scores) or "none yet",
    }


def _loads(records: Records) -> list[Mapping[str, Any]]:
    loads = [r for r in records if r["kind"] == "load" and r["modules"]]
    several = [
        r for r in loads if any(len(row) > 1 for rows in r["modules"].values() for row in rows)
    ]
    if not several:
        raise _Missing("the run has no load of several experts")
    return several


def _draw_training(records: Records, path: Path) -> None:
    try:
        plot_training(records, path, title="Losses and scores")
    except UserError as error:
        raise _Missing(str(error)) from None


def _draw_load(records: Records, path: Path) -> None:
    plot_expert_load(_loads(records), path, title="Expert load by layer")


def _draw_load_over_time(records: Records, path: Path) -> None:
    loads = _loads(records)
    names = list(loads[-1]["modules"])
    tables = {}
    for short, name in zip(short_names(names), names, strict=True):
        means = [np.nanmean(np.array(load["modules"][name], float), axis=0) for load in loads]
        tables[short] = np.stack(means, axis=1) * len(means[0])
    plot_heatmaps(
        tables,
        path,
        title="Expert load over time, mean over layers",
        x_label="step of the evaluation",
        y_label="expert",
        scale=Scale("share / even share", even=1.0, top=2.0),
        columns=[f"{load['step']:,}" for load in loads],
    )


def _draw_entropy_over_time(records: Records, path: Path) -> None:
    steps, values = training_series(records, "router_entropy")
    if max(values, default=0.0) <= 0:
        raise _Missing("the run has no router whose entropy was recorded")
    experts = max(len(row) for rows in _loads(records)[-1]["modules"].values() for row in rows)
    panel = Panel(
        "mean over all routers",
        "entropy, nats",
        {"router entropy": [(steps, values)]},
        bounds={f"even shares: ln {experts} = {np.log(experts):.2f}": float(np.log(experts))},
    )
    plot_curves([[panel]], path, title="Router entropy over time")


def _draw_entropy(opened: Opened, path: Path) -> None:
    run = opened.run
    experts = _experts(run)
    batches = evaluation_batches(run.config, load_rows(run.config, "evaluation")[0])
    entropies = router_entropies(run, batches)
    layers = max(len(values) for values in entropies.values())
    rows = [
        np.pad(values, (0, layers - len(values)), constant_values=np.nan)
        for values in entropies.values()
    ]
    plot_heatmaps(
        {"": np.stack(rows)},
        path,
        title=f"Router entropy by layer at step {run.step:,} (even: {np.log(experts):.2f})",
        x_label="layer",
        y_label="",
        rows=short_names(list(entropies)),
        scale=Scale("nats", top=float(np.log(experts))),
    )


def _experts(run: Reopened) -> int:
    experts = run.config.adapter.spec().num_experts
    if experts < 2:
        raise _Missing("the method has one expert")
    return experts


def _draw_routes(opened: Opened, path: Path) -> None:
    run = opened.run
    _experts(run)
    title = f"Strongest expert, step {run.step:,}"
    assert opened.batch is not None
    routing = routes(run, opened.batch, opened.tokens)
    if routing.image is not None:
        draw = partial(plot_patches, image=routing.image)
    else:
        draw = partial(plot_tokens, tokens=routing.tokens)
    if not routing.weights:
        raise _Missing("no adapted module sees single tokens")
    names = short_names(list(routing.weights))
    draw(dict(zip(names, routing.weights.values(), strict=True)), path=path, title=title)


def _draw_spectra(opened: Opened, path: Path) -> None:
    by_pattern = spectra(opened.run)
    named = dict(zip(short_names(list(by_pattern)), by_pattern.values(), strict=True))
    plot_spectra(named, path, title="Singular values of the pretrained kernels, middle layer")


def _draw_updates(opened: Opened, path: Path) -> None:
    norms = update_norms(opened.run)
    if not norms:
        raise _Missing("the method's adapters do not add s a b to the layer")
    plot_heatmaps(
        dict(zip(short_names(list(norms)), norms.values(), strict=True)),
        path,
        title=f"Update of every expert, steps 0 to {opened.run.step:,}",
        x_label="expert",
        y_label="layer",
        scale=Scale("norm of the change of s a b"),
    )


OF_RECORDS = (
    Picture(
        "training",
        "Losses and scores",
        "The training loss of the task and the scores of every evaluation.",
        _draw_training,
    ),
    Picture(
        "load",
        "Expert load by layer",
        "Share of the evaluation's tokens that each expert gets, by layer and kind of module, at "
        "the last evaluation. White is an even share, purple less, orange more.",
        _draw_load,
    ),
    Picture(
        "load_over_time",
        "Expert load over time",
        "The same, averaged over layers, at every evaluation of the run.",
        _draw_load_over_time,
    ),
    Picture(
        "entropy_over_time",
        "Router entropy over time",
        "Mean entropy of the routers' probabilities in training. It is largest, ln E, where all "
        "experts are equally likely, and 0 where a router always knows.",
        _draw_entropy_over_time,
    ),
)
"""Pictures drawn from metrics.jsonl."""

OF_CHECKPOINT = (
    Picture(
        "entropy",
        "Router entropy by layer",
        "Mean over the tokens of the first evaluation batches; the darkest is an even choice.",
        _draw_entropy,
    ),
    Picture(
        "routes",
        "Expert of each token",
        "Each token (or patch) has the colour of the expert with the largest weight; the colour is "
        "paler the more the others weigh.",
        _draw_routes,
    ),
    Picture(
        "spectra",
        "Singular spectra and segments",
        "Singular values of the pretrained kernels in the middle layer. Bands mark the segments "
        "that the experts start from, where the method has any.",
        _draw_spectra,
    ),
    Picture(
        "updates",
        "Updates per expert",
        "Frobenius norm of what each expert has added to its kernel since the start, by layer.",
        _draw_updates,
    ),
)
"""Pictures drawn from a checkpoint and the evaluation rows."""
