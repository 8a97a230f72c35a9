"""The GLUE tasks: columns, class names and metrics, from a local folder, TFDS or the hub.

Source: Wang et al., "GLUE: A Multi-Task Benchmark", ICLR 2019, with TFDS's column names and class
order. The metrics are those that GLUE reports, plus accuracy, which the paper's table uses. GLUE's
test labels are not public, so scores are on the validation split, as in the paper. MNLI has two
validation splits, matched and mismatched, which are scored together and separately.

One row of each task's training file:

- cola: "Our friends won't buy this analysis, let alone the next one we propose.", acceptable
- sst2: "hide new secretions from the parental units", negative
- mrpc: "Amrozi accused his brother, whom he called "the witness", of deliberately distorting his
  evidence." and "Referring to him as only "the witness", Amrozi accused his brother of deliberately
  distorting his evidence.", equivalent
- qqp: "How is the life of a math student? Could you describe your own experiences?" and "Which
  level of prepration is enough for the exam jlpt5?", not_duplicate
- mnli: "Conceptually cream skimming has two basic dimensions - product and geography." and "Product
  and geography are what make cream skimming work.", neutral
- qnli: "When did the third Digimon series begin?" and "Unlike the two seasons before it and most of
  the seasons that followed, Digimon Tamers takes a darker and more realistic approach to its story
  featuring Digimon who do not reincarnate after their deaths and more complex character development
  in the original Japanese.", not_entailment
- rte: "No Weapons of Mass Destruction Found in Iraq Yet." and "Weapons of Mass Destruction Found in
  Iraq.", not_entailment
"""

from dataclasses import dataclass
from pathlib import Path

from goat_jax.data.sources.formats import find_split
from goat_jax.data.sources.read import AND, OR
from goat_jax.data.tasks.text import TextTask
from goat_jax.errors import UserError
from goat_jax.files import user_path


@dataclass(frozen=True)
class GlueRow:
    """Settings of one GLUE task.

    Attributes:
      text: the names of the text columns.
      labels: the class names in the order of their ids; empty for regression.
      metrics: the metrics; the first one is the primary metric.
      folders: other names that the task's folder may have.
      evaluation: the splits that are scored together.
      parts: the name of each of these splits in the metrics.

    >>> GLUE["rte"].labels
    ('entailment', 'not_entailment')
    """

    text: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    folders: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ("validation",)
    parts: tuple[str, ...] = ()


PAIR = ("sentence1", "sentence2")
NLI = ("entailment", "neutral", "contradiction")
GLUE: dict[str, GlueRow] = {
    "cola": GlueRow(("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "sst2": GlueRow(("sentence",), ("negative", "positive"), folders=("sst2_sentences",)),
    "mrpc": GlueRow(PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "qqp": GlueRow(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "stsb": GlueRow(PAIR, (), ("pearson", "spearman")),
    "mnli": GlueRow(
        ("premise", "hypothesis"),
        NLI,
        ("accuracy", "accuracy_matched", "accuracy_mismatched"),
        evaluation=("validation_matched", "validation_mismatched"),
        parts=("matched", "mismatched"),
    ),
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
    """Makes one GLUE task.

    Args:
      name: a key of `GLUE`.
      folder: the folder with NAME/train.* and NAME/validation.* in any format of `FORMATS` (MNLI:
        validation_matched.* and validation_mismatched.*). None: the rows come from TFDS
        (`goat-jax data prepare NAME` builds them), or else from the hub, if the package datasets
        is installed.
      data_dir: TFDS's folder.
      train_limit: the largest number of training rows, as in `TextTask`.
      evaluation_limit: the largest number of evaluation rows, as in `TextTask`.

    >>> glue("rte").evaluation
    'tfds:glue/rte@validation || hf:nyu-mll/glue/rte@validation'
    """
    if name not in GLUE:
        raise UserError(f"unknown GLUE task {name!r}: use one of {', '.join(GLUE)}")
    row = GLUE[name]
    roots = [user_path(folder or "") / part for part in (name, *row.folders)]

    def source(split: str) -> str:
        if folder is not None:
            return find_split(roots, split)
        return f"tfds:glue/{name}@{split}{OR}hf:nyu-mll/glue/{name}@{split}"

    return TextTask(
        name=name,
        train=source("train"),
        evaluation=AND.join(map(source, row.evaluation)),
        text=row.text,
        label="label",
        labels=row.labels,
        metrics=row.metrics,
        parts=row.parts,
        data_dir=data_dir,
        train_limit=train_limit,
        evaluation_limit=evaluation_limit,
    )
