"""Model card of an export: README.md with base model, data, method, scores and command."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from goat_jax.config.fields import flatten
from goat_jax.config.run import RunConfig
from goat_jax.data.tasks.registry import (
    EvalTask,
    ImageTask,
    LanguageTask,
    MultiLabelTask,
    TextTask,
    TokenTask,
)
from goat_jax.interop.hub import is_repo_id
from goat_jax.text_tables import render_table
from goat_jax.validation.records import Dataclass


@dataclasses.dataclass(frozen=True)
class Facts:
    """The contents of a model card that are not in the run's config.

    Attributes:
        form: a description of the export, in words.
        library: the library that loads it.
        step: the checkpoint's step.
        scores: column -> metric -> value, on the evaluation rows.
        trained: the number of trained parameters.
        command: the command that trained it, None if it is unknown.
        versions: the versions of the libraries that trained it, by name.
        base: the pretrained model, given by its repository if that is known.
        use: Python code that loads the export, "" if there is none.
        notes: remarks for the user, one line each.
        code: a sentence on the code in the folder, "" if it holds none.
    """

    form: str
    library: str
    step: int
    scores: Mapping[str, Mapping[str, float]]
    trained: int
    command: str | None
    versions: Mapping[str, str]
    base: str
    use: str
    notes: tuple[str, ...] = ()
    code: str = ""


def write_card(name: str, config: RunConfig, facts: Facts, whole: bool) -> str:
    """Returns the text of README.md in the format of the Hugging Face hub.

    Args:
        name: the title.
        config: the run's config.
        facts: the other contents.
        whole: whether the folder is a complete model.
    """
    method, base = config.adapter.method, facts.base
    path_note = "" if base == config.model.path else f" (`{config.model.path}`)"
    state = "is merged into these weights" if whole else "is not merged: it needs its base model"
    if facts.code:
        state = "is in these weights, with its routers"
    lines = [
        "---",
        metadata(name, config, facts, whole),
        "---",
        f"# {name}",
        "",
        f"{facts.form}, of a run with goat_jax: `{method}` on `{base}`{path_note}, trained on "
        f"`{config.task.name}`, checkpoint of step {facts.step}, {facts.trained:,} trained "
        f"parameters. The adapter {state}.",
        *(["", f"**{facts.code}**"] if facts.code else []),
        *(["", *(f"- {note}" for note in facts.notes)] if facts.notes else []),
        "",
        "## Scores on the evaluation rows",
        "",
        _table(facts.scores),
    ]
    for title, part in (
        ("Data", config.task),
        ("Method", config.adapter),
        ("Optimizer", config.optimizer),
        ("Training", config.train),
    ):
        lines += ["", f"## {title}", "", _fields(part)]
    if facts.versions:
        rows = [[f"`{library}`", version] for library, version in facts.versions.items()]
        table = render_table(["library", "version"], rows, markdown=True)
        lines += ["", "## Versions", "", table]
    if facts.command:
        lines += ["", "## Command", "", "```sh", facts.command, "```"]
    if facts.use:
        lines += ["", "## Use", "", "```python", facts.use, "```"]
    return "\n".join(lines) + "\n"


PIPELINES: Mapping[type, str] = MappingProxyType(
    {
        TextTask: "text-classification",
        MultiLabelTask: "text-classification",
        TokenTask: "token-classification",
        LanguageTask: "text-generation",
        EvalTask: "text-generation",
        ImageTask: "image-classification",
    }
)
"""Class of a task -> what the hub calls it."""


def metadata(name: str, config: RunConfig, facts: Facts, whole: bool) -> str:
    """Returns the YAML that the hub reads: base model, library, task, data and scores.

    A base model or data set that is not a repository of the hub, such as a folder, is left out: the
    hub refuses such a name.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task, pipeline = config.task, PIPELINES[type(config.task)]
    data = hub_data(task.train)
    scores = {metric: float(value) for metric, value in facts.scores["run"].items()}
    results = [
        EvalResult(pipeline, data or task.name, task.name, metric, value)
        for metric, value in scores.items()
        if math.isfinite(value)
    ]
    base = facts.base if is_repo_id(facts.base) else None
    relation = "finetune" if whole else "adapter"
    card = ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else relation,
        library_name=facts.library,
        pipeline_tag=pipeline,
        datasets=[data] if data else None,
        tags=["goat_jax", "lora", config.adapter.method],
        model_name=name,
        eval_results=results,
    )
    return card.to_yaml()


def hub_data(source: str) -> str | None:
    """Returns the repository of a source of rows, if it is one of the hub.

    >>> hub_data("hf:stanfordnlp/imdb@train"), hub_data("reviews.csv")
    ('stanfordnlp/imdb', None)
    """
    kind, _, rest = source.partition(":")
    name = "/".join(rest.partition("@")[0].split("/")[:2])
    return name if kind == "hf" and is_repo_id(name) else None


def _table(columns: Mapping[str, Mapping[str, float]]) -> str:
    metrics = list(dict.fromkeys(metric for scores in columns.values() for metric in scores))
    rows = [[name, *(scores.get(name) for scores in columns.values())] for name in metrics]
    return render_table(["metric", *columns], rows, markdown=True)


def _fields(part: Dataclass) -> str:
    """Renders the non-empty fields of one part of the config as a table."""
    values = {name: value for name, value in flatten(part).items() if value not in (None, [], {})}
    rows = [[f"`{name}`", f"`{_one_line(value)}`"] for name, value in values.items()]
    return render_table(["field", "value"], rows, markdown=True)


def _one_line(value: object) -> str:
    """Escapes a value so that it stays inside one cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
