"""The GLUE tasks: columns, class names and metrics, from a local folder or from TFDS.

Source of columns and classes: Wang et al., "GLUE: A Multi-Task Benchmark", ICLR 2019, in the names
and class order that TFDS gives them. The metric of each task is the one GLUE reports.
"""

from dataclasses import dataclass
from pathlib import Path

from goat_jax.data.examples import TextTask
from goat_jax.data.formats import find_split
from goat_jax.errors import UserError


@dataclass(frozen=True)
class GlueRow:
    """What differs between the tasks.

    >>> GLUE["rte"].labels
    ('entailment', 'not_entailment')
    """

    text: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    folders: tuple[str, ...] = ()
    evaluation: str = "validation"


PAIR = ("sentence1", "sentence2")
NLI = ("entailment", "neutral", "contradiction")
GLUE: dict[str, GlueRow] = {
    "cola": GlueRow(("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "sst2": GlueRow(("sentence",), ("negative", "positive"), folders=("sst2_sentences",)),
    "mrpc": GlueRow(PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "qqp": GlueRow(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "stsb": GlueRow(PAIR, (), ("pearson", "spearman")),
    "mnli": GlueRow(("premise", "hypothesis"), NLI, evaluation="validation_matched"),
    "qnli": GlueRow(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": GlueRow(PAIR, ("entailment", "not_entailment")),
}


def glue(
    name: str,
    folder: str | Path | None = None,
    *,
    data_dir: str | None = None,
    train_limit: int | None = None,
    evaluation_limit: int | None = None,
) -> TextTask:
    """One GLUE task.

    Args:
      name: a key of `GLUE`.
      folder: holds NAME/train.* and NAME/validation.* in any format of `FORMATS`; if None, the
        rows come from TFDS (`tfds:glue/NAME`).
      data_dir: TFDS's folder.
      train_limit, evaluation_limit: as in `TextTask`.

    >>> glue("mnli").evaluation
    'tfds:glue/mnli@validation_matched'
    """
    if name not in GLUE:
        raise UserError(f"unknown GLUE task {name!r}: use one of {', '.join(GLUE)}")
    row = GLUE[name]
    if folder is None:
        sources = [f"tfds:glue/{name}@{split}" for split in ("train", row.evaluation)]
    else:
        roots = [Path(folder).expanduser() / part for part in (name, *row.folders)]
        sources = [find_split(roots, split) for split in ("train", row.evaluation)]
    return TextTask(
        name=name,
        train=sources[0],
        evaluation=sources[1],
        text=row.text,
        label="label",
        labels=row.labels,
        metrics=row.metrics,
        data_dir=data_dir,
        train_limit=train_limit,
        evaluation_limit=evaluation_limit,
    )
