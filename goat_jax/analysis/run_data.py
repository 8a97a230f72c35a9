"""Data for figures of one run that its records lack: from a checkpoint and the run's rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from goat_jax.adapters.adapter import Report, segment_index
from goat_jax.adapters.context import Context
from goat_jax.config.run import RunConfig
from goat_jax.data.pipeline.image_view import view_of
from goat_jax.data.pipeline.images import ImageRows
from goat_jax.data.pipeline.token_ids import check_ids
from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.errors import UserError
from goat_jax.interop.modules import read_kernels
from goat_jax.models.load import load_model
from goat_jax.nn.dense import Adaptable, Adapter, merge_model
from goat_jax.nn.named_modules import ModuleRef, find_modules, name_number
from goat_jax.plots.spectra import Spectrum
from goat_jax.pretrained.resolve import find_model
from goat_jax.training.checkpoints.restore import Reopened
from goat_jax.training.checks import model_options
from goat_jax.training.data import load_rows
from goat_jax.training.step import forward
from goat_jax.training.task_types import task_type_of
from goat_jax.typing import Batch, PyTree

IMAGE = "pixel_values"
BATCHES = 4
"""Number of evaluation batches over which the router's entropy is averaged."""

ByModule = dict[str, np.ndarray]
"""Module name pattern -> numbers, with layers as the first axis."""


@dataclasses.dataclass(frozen=True)
class Routes:
    """Routing of one row: the experts' weights for each of its tokens.

    Attributes:
        weights: module name pattern -> expert weights (L, T, E).
        tokens: the T tokens as text; empty for an image.
        image: the image (H, W, 3); None for a text.
    """

    weights: ByModule
    tokens: Sequence[str]
    image: np.ndarray | None


def router_entropies(run: Reopened, batches: Sequence[Batch]) -> ByModule:
    """Returns the mean entropy (L,) of every router over the first `BATCHES` batches, in nats."""
    batch_reports = _reports(run, batches[:BATCHES], per_token=False)
    return {
        name: np.mean([np.asarray(reports[name].entropy) for reports in batch_reports], axis=0)
        for name in batch_reports[0]
    }


def routes(run: Reopened, batch: Batch, tokens: Sequence[str] = ()) -> Routes:
    """Returns the experts' weights for the first row of a batch.

    Modules whose router does not see single tokens are left out.

    Args:
        run: the restored run.
        batch: the batch with the row.
        tokens: the row's tokens as text; empty for an image.
    """
    (reports,) = _reports(run, [batch], per_token=True)
    count = len(tokens) or None
    weights = {
        name: np.asarray(report.weights[:, 0, :count])
        for name, report in reports.items()
        if report.weights is not None and report.weights.ndim == 4
    }
    image = np.asarray(batch[IMAGE][0]) if IMAGE in batch else None
    return Routes(weights, tokens, image)


def _reports(
    run: Reopened, batches: Sequence[Batch], *, per_token: bool
) -> list[dict[str, Report]]:
    """Returns the adapters' reports on each batch, as module -> `Report`."""
    loss_fn = task_type_of(run.config.task).loss_fn(run.config.task)
    base = run.state.frozen(run.setup.base)

    @jax.jit
    def reports(trainable: PyTree, base: PyTree, batch: Batch) -> dict[str, Report]:
        context = Context.of_batch(batch, None, batch.get("attention_mask"))
        ctx = dataclasses.replace(context, per_token=per_token)
        return forward(run.setup.graph, trainable, base, batch, loss_fn, ctx).reports

    order = dict.fromkeys(row.name for row in run.setup.inject_report.rows)
    batch_reports = [jax.device_get(reports(run.state.trainable, base, batch)) for batch in batches]
    return [{name: each[name] for name in order if name in each} for each in batch_reports]


def batch_of_text(run: Reopened, text: str | None, row: int) -> tuple[Batch, list[str]]:
    """Makes a batch of one text; returns it with its tokens.

    Args:
        run: the restored run.
        text: the text; None for a row of the evaluation split.
        row: the row's index, if no text is given.

    Raises:
        UserError: the run's model reads images, or there is no such row.
    """
    config = run.config
    if run.setup.vocabulary is None:
        raise UserError("this run's model reads images: give --image or --row, not --text")
    tokenizer = load_tokenizer(find_model(config.model.path), config.model.add_tokens)
    if text is None:
        batch = _evaluation_row(config, row)
        ids = batch["input_ids"][0][batch["attention_mask"][0] > 0]
        return batch, [tokenizer.convert_ids_to_tokens(number) for number in ids.tolist()]
    ids = tokenizer(text, truncation=True, max_length=config.train.max_length)["input_ids"]
    check_ids({"vocab_size": [ids]}, {"vocab_size": run.setup.vocabulary})
    blank = task_type_of(config.task).one_row(config.task, config.model.path, len(ids))
    batch = dict(blank.gather(np.array([0]), len(ids)))
    batch["input_ids"] = np.array([ids], np.int32)
    batch["attention_mask"] = np.ones((1, len(ids)), np.int32)
    return batch, [tokenizer.convert_ids_to_tokens(number) for number in ids]


def batch_of_image(run: Reopened, path: Path | None, row: int) -> Batch:
    """Makes a batch of one image.

    Args:
        run: the restored run.
        path: the image file; None for a row of the evaluation split.
        row: the row's index, if no file is given.

    Raises:
        UserError: the run's model reads texts, or the file is not an image.
    """
    if run.setup.vocabulary is not None:
        raise UserError("this run's model reads texts: give --text or --row, not --image")
    if path is None:
        return _evaluation_row(run.config, row)
    task: Any = run.config.task
    rows = [{task.image: str(path.absolute())}]
    view = view_of(task, find_model(run.config.model.path))
    images = ImageRows(task, view, str(path), rows, [0], np.zeros(1, np.int32))
    return images.gather(np.array([0]), 1)


def _evaluation_row(config: RunConfig, row: int) -> Batch:
    rows = load_rows(config, "evaluation")[0]
    if not 0 <= row < len(rows):
        raise UserError(f"--row {row}: the evaluation split has rows 0 to {len(rows) - 1}")
    return rows.gather(np.array([row]), int(rows.lengths[row]))


def update_norms(run: Reopened) -> ByModule:
    """Computes the Frobenius norms (L, E) of each expert's change of s a b since initialization.

    Modules whose adapter is not a sum of products s a b are left out. The run has to be restored
    with `factors`.
    """
    frozen = run.state.frozen(run.setup.base)
    now = _adapters(merge_model(run.setup.graph, run.state.trainable, frozen))
    start = _adapters(merge_model(run.setup.graph, run.setup.state.trainable, run.setup.base))
    norms: dict[str, list[np.ndarray]] = {}
    for (name, after), (_, before) in zip(now, start, strict=True):
        if after.spec.has_products:
            norms.setdefault(name, []).append(norms_of_change(_arrays(before), _arrays(after)))
    return {name: np.concatenate(runs) for name, runs in norms.items() if _alike(runs)}


def _alike(runs: Sequence[np.ndarray]) -> bool:
    return len({run.shape[-1] for run in runs}) == 1


def _adapters(model: nnx.Module) -> list[tuple[str, Adapter]]:
    refs = ((ref.pattern, ref.module.adapter) for ref in find_modules(model))
    return [(name, adapter) for name, adapter in refs if adapter is not None]


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def _arrays(adapter: Adapter) -> Arrays:
    """Returns a (L, E or 1, I, R), b (L, E, R, O) and the scale (L, E) in float64."""
    factors = adapter.factors()
    parts = [
        np.asarray(each, np.float64) for each in (factors["a"], factors["b"], adapter.scale[...])
    ]
    a, b, scale = parts if parts[0].ndim == 4 else [part[None] for part in parts]
    return a, b, scale


def norms_of_change(before: Arrays, after: Arrays) -> np.ndarray:
    """Computes the Frobenius norms (L, E) of the change of s a b, without forming (I, O) products.

    >>> one, two = np.ones((1, 1, 3, 1)), np.full((1, 1, 1, 2), 2.0)
    >>> norms_of_change((one, 0 * two, np.ones((1, 1))), (one, two, np.ones((1, 1)))).round(3)
    array([[4.899]])
    """
    (a, b, s), (x, y, t) = before, after
    squares = _inner(x, y, x, y, t * t) - 2 * _inner(a, b, x, y, s * t) + _inner(a, b, a, b, s * s)
    return np.sqrt(np.maximum(squares, 0.0))


def _inner(
    a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Returns the inner product <a b, x y> of every expert, times a scale (L, E)."""
    left, right = np.einsum("leir,leis->lers", a, x), np.einsum("lero,leso->lers", b, y)
    return (left * right).sum((-2, -1)) * scale


def spectra(run: Reopened) -> dict[str, Spectrum]:
    """Computes the singular values of the pretrained kernels of each module's middle layer.

    Each spectrum also has the indices of the experts' segments, if the method starts from them.
    """
    config = run.config
    model = load_model(
        find_model(config.model.path), key=jax.random.key(0), **model_options(config)
    ).model
    key = jax.random.split(jax.random.key(config.train.seed), 3)[1]  # same as in `setup.build`
    trained = merge_model(run.setup.graph, run.state.trainable, run.setup.base)
    middle = {}
    for pattern, refs in _by_pattern(trained).items():
        names = [(name, ref.module.adapter) for ref in refs for name in ref.names()]
        middle[pattern] = names[len(names) // 2]
    kernels = read_kernels(model, [name for name, _ in middle.values()])
    by_pattern = {}
    for pattern, (name, adapter) in middle.items():
        values = np.linalg.svd(kernels[name].astype(np.float32), compute_uv=False)
        kernel_key = jax.random.fold_in(key, name_number(name))
        index = segment_index(len(values), adapter.spec, kernel_key)
        by_pattern[pattern] = Spectrum(values, None if index is None else np.asarray(index))
    return by_pattern


def _by_pattern(model: nnx.Module) -> dict[str, list[ModuleRef[Adaptable]]]:
    groups: dict[str, list[ModuleRef[Adaptable]]] = {}
    for ref in find_modules(model):
        if ref.module.adapter is not None:
            groups.setdefault(ref.pattern, []).append(ref)
    return groups
