"""Model card of an export: README.md with base model, data, method, scores and command."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from goat_jax.config.fields import flatten
from goat_jax.config.run import RunConfig
from goat_jax.text_tables import render_table
from goat_jax.typing import Dataclass


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


def write_card(name: str, config: RunConfig, facts: Facts, merged: bool) -> str:
    """Returns the text of README.md in the format of the Hugging Face hub.

    Args:
        name: the title.
        config: the run's config.
        facts: the other contents.
        merged: whether the adapter is merged into the weights.
    """
    method, base = config.adapter.method, facts.base
    head = {
        "base_model": json.dumps(base),
        "library_name": facts.library,
        "tags": f"[goat_jax, lora, {method}]",
    }
    given = "" if base == config.model.path else f" (`{config.model.path}`)"
    state = "is merged into these weights" if merged else "is not merged: it needs its base model"
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in head.items()),
        "---",
        f"# {name}",
        "",
        f"{facts.form}, of a run with goat_jax: `{method}` on `{base}`{given}, trained on "
        f"`{config.task.name}`, checkpoint of step {facts.step}, {facts.trained:,} trained "
        f"parameters. The adapter {state}.",
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
