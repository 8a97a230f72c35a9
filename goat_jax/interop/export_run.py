"""Exports a finished run to PEFT, transformers, the published code's format or plain LoRA."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from pathlib import Path

from goat_jax.config.run import ModelConfig
from goat_jax.errors import UserError
from goat_jax.interop import folders, merged
from goat_jax.interop.export_formats import FORMS, WHOLE, Options, unmergeable
from goat_jax.interop.hf_config import pooled_logits
from goat_jax.interop.lora_approximation import BEST, GATES
from goat_jax.interop.model_card import write_card
from goat_jax.interop.trained_run import Trained
from goat_jax.models.vision.heads import ZERO_SHOT
from goat_jax.text_tables import html_table, render_table
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.validation.checks import check_choice


@dataclasses.dataclass(frozen=True, repr=False)
class Exported:
    """The result of an export; printed as a table of scores, and the notes.

    Attributes:
        folder: the folder that was written.
        step: the checkpoint's step.
        scores: column -> metric -> value on the run's evaluation rows.
        notes: remarks for the user.
    """

    folder: Path
    step: int
    scores: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join([render_table(*self._table()), *self._end()])

    def _repr_html_(self) -> str:
        """Returns the table in HTML, which a notebook shows."""
        return html_table(*self._table()) + "<br>".join(map(html.escape, self._end()))

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Returns the headers and rows of the table of scores."""
        metrics = dict.fromkeys(name for column in self.scores.values() for name in column)
        rows = [[m, *(f"{column[m]:.4f}" for column in self.scores.values())] for m in metrics]
        return ["evaluation rows", *self.scores], rows

    def _end(self) -> list[str]:
        return [*self.notes, f"step {self.step} written to {self.folder}"]


def export_run(
    folder: Path,
    to: str,
    out: Path,
    *,
    step: int | None = None,
    task: int | None = None,
    rows: int = 256,
    gates: str = BEST,
    rank: int | None = None,
    dtype: str | None = None,
    shard_bytes: int = folders.SHARD_BYTES,
) -> Exported:
    """Writes a run's adapter or its complete model in another format, all of it or nothing.

    Args:
        folder: the run's folder.
        to: the format: "peft" (exact, on the pretrained model; routed experts for the tuner in
            `goat_jax.torch`), "goat" (the published code's names), "merged" (a Hugging Face
            model), "transformers" (a Hugging Face model with routed experts and their code), or
            "lora" (routed experts with constant weights).
        out: the folder to create.
        step: the checkpoint's step; None: the best checkpoint.
        task: the task whose expert weights are used, for an adapter that is gated by tasks.
        rows: the number of training rows that constant weights are measured on.
        gates: the constant weights of a "lora": "fitted" (those with the least squared distance
            to what each routed layer adds), "mean", or "best" (of these the ones with the lower
            loss on the evaluation rows).
        rank: the largest rank of a "lora"; None: that of all experts side by side.
        dtype: the dtype of a complete model's weights; None: the run's dtype if it is not float32
            or there are routed experts, otherwise the dtype that the pretrained weights are stored
            in.
        shard_bytes: the largest size of a complete model's files, in bytes.

    Raises:
        UserError: the format cannot represent the adapter (the message says why), or the folder
            cannot be written.
    """
    _check_options(to, gates, rank, dtype)
    _check_run(Path(folder), to, task)
    with folders.whole_folder(Path(out)) as aside:
        run = Trained(Path(folder), step, factors=True)
        try:
            options = Options(Path(out).name, task, rows, gates, rank, dtype, shard_bytes)
            facts, extra = FORMS[to](run, aside, options)
        except UserError as error:
            raise UserError(f"{folder} cannot be exported to {to}: {error}") from None
        facts = dataclasses.replace(facts, notes=(*_notes(run), *facts.notes))
        card = write_card(Path(out).name, run.config, facts, to in WHOLE)
        (aside / "README.md").write_text(card, encoding="utf-8")
        about = {
            "form": to,
            "method": run.config.adapter.method,
            "step": facts.step,
            "base_sha256": run.setup.base_fingerprint,
            "scores": facts.scores,
            **extra,
        }
        folders.write_json(aside / folders.ABOUT, about)
    return Exported(Path(out), facts.step, facts.scores, facts.notes)


def _check_options(to: str, gates: str, rank: int | None, dtype: str | None) -> None:
    """Refuses options that the format does not have."""
    if to not in FORMS:
        raise UserError(f"{to!r} is not a format: {', '.join(FORMS)}")
    check_choice("--gates", gates, GATES)
    if rank is not None and to != "lora":
        raise UserError(f"--rank is for --to lora: {to} keeps every rank")
    if dtype is not None:
        check_choice("--dtype", dtype, merged.DTYPES)
        if to not in WHOLE:
            raise UserError(
                f"--dtype is for --to {' or '.join(WHOLE)}: {to} keeps its factors in float32"
            )


def _check_run(folder: Path, to: str, task: int | None) -> None:
    """Refuses, from its config alone, a run that the format cannot represent."""
    config = load_run(folder)[0]
    bits = config.model.quantize
    if bits != "none":
        raise UserError(
            f"{folder} was trained on a base model in {bits}: only runs on an unquantized one can "
            "be exported"
        )
    router = unmergeable(config.adapter)
    if to == "merged" and task is None and router is not None:
        raise UserError(
            f"{folder} cannot be exported to {to}: {type(router).__name__} weights the experts "
            f"{router.varies}, so no single kernel equals this adapter; --to transformers and "
            f"--to peft keep it, --to lora approximates it{_without_classes(config.model)}"
        )


def _without_classes(model: ModelConfig) -> str:
    """Returns what limits the formats of transformers' classes, to add to an error about them."""
    if model.options.get("head") != ZERO_SHOT:
        return ""
    return ", if its class matrix was not trained; --to goat keeps it in any case"


READS_THE_MEAN = (
    "the head reads the mean of the tokens; transformers' class reads the first one, so its own "
    "logits are others: `logits` on the card computes this run's"
)

DIFFERS = {
    ("head", ZERO_SHOT): "transformers' model compares images with texts, so give it the "
    "prompt of every class, in the order of the labels",
    ("family", "clip_vision_model"): "transformers builds a classifier only on the config.json of "
    "a whole CLIP; --to merged writes one",
    ("family", "siglip_vision_model"): "transformers builds a classifier only on the config.json "
    "of a whole SigLIP; --to merged writes one",
}
"""(field, value) of a model's config -> a remark on how transformers' class differs from it."""


def _notes(run: Trained) -> tuple[str, ...]:
    config, name = run.model.config, "a"
    notes = (READS_THE_MEAN,) if pooled_logits(config, name) else ()
    return notes + tuple(
        note for (field, value), note in DIFFERS.items() if getattr(config, field, None) == value
    )
