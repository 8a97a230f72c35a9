"""Makes a task from a file or a folder alone: its columns, its classes, the format of its texts.

Every choice is reported in one line, with the field that makes another one.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from goat_jax.data.sources.formats import Row
from goat_jax.data.sources.images import IMAGE_SUFFIXES
from goat_jax.data.sources.read import SCHEMES, read_image_source, read_source
from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.language import FORMATS, LanguageTask
from goat_jax.data.tasks.text import TextTask
from goat_jax.data.tasks.tokens import TokenTask
from goat_jax.errors import UserError, nearest
from goat_jax.files import user_path

Task = TextTask | TokenTask | LanguageTask | ImageTask
T = TypeVar("T", bound=Task)

LABEL_NAMES = (
    *("label", "labels", "class", "target", "category", "sentiment", "score", "rating", "stars"),
    *("topic", "intent", "emotion", "polarity", "tone", "grade", "type", "y"),
    *("classes", "categories", "topics", "genres", "emotions"),
)
TEXT_NAMES = (
    *("text", "sentence", "review", "content", "question", "comment", "message", "body", "tweet"),
    *("document", "abstract", "description", "headline", "title", "input", "prompt", "query"),
)
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "document"),
)
"""Columns that hold the two texts of a pair."""

NO_CONTENT = {"id", "idx", "index", "date", "time", "url", "link", "unnamed"}
"""Words in the names of columns that are neither text nor label."""

MOST_NUMBERED_CLASSES = 20
"""A column of whole numbers with more distinct values is a quantity: regression."""

CHATS = (
    (("messages",), "messages"),
    (("conversations",), "messages"),
    (("prompt", "completion"), "prompt_completion"),
    (("instruction", "output"), "alpaca"),
    (("text",), "text"),
)
"""(Columns, key of `language.FORMATS` that reads them), first match first."""

ANSWERS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "answer"),
    ("query", "response"),
    ("input", "output"),
)
"""(Column of the prompt, column of the answer), read by templates."""

SPLIT_FOLDERS = ("validation", "valid", "val", "dev", "held_out", "test")
"""Names of a folder beside ``train`` that holds evaluation images."""

BYTES_PER_TOKEN = 3


@dataclasses.dataclass(frozen=True)
class Guess(Generic[T]):
    """A task made from data.

    Attributes:
      task: the task.
      rows: the number of training rows.
      length: about how many tokens a row has, exceeded by one row in a hundred.
      lines: one line for every choice.
    """

    task: T
    rows: int
    length: int
    lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Data:
    """The data to make a task from.

    Attributes:
      source: the source of the training rows (`goat_jax.data.sources.read`).
      held_out: the source of the evaluation rows; None: a tenth of the training rows.
      given: fields of the task that the user has set, by name.
    """

    source: str
    held_out: str | None
    given: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the data, for the task and the run folder.

        >>> Data("mine/My reviews.csv", None, {}).name
        'My-reviews'
        """
        place = self.source.partition("@")[0].rstrip("/").rpartition("/")[2]
        suffixes = r"(\.(jsonl|json|csv|tsv|txt|npz|parquet))?(\.gz)?$"
        return re.sub(r"[^\w-]+", "-", re.sub(suffixes, "", place)).strip("-") or "data"

    def held_out_part(self, count: int, how: str) -> tuple[dict[str, Any], int, str]:
        """Returns the fields that name the evaluation rows, the training rows' number and a line.

        Args:
          count: the number of rows of the source.
          how: the choice of the held-out rows, in words.
        """
        if self.held_out is not None:
            return {"evaluation": self.held_out}, count, f"held out: {self.held_out}"
        if count < 2:
            raise UserError(f"{self.source}: {count} row: give more, or a file with --held-out")
        held = min(1000, max(1, count // 10))
        line = f"held out: {held:,} of {count:,} rows, {how}; say otherwise with --held-out FILE"
        return {"evaluation": self.source, "held_out": held}, count - held, line


def _metrics(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the metrics for some classes, or for numbers if there are none."""
    if not labels:
        return ("pearson", "spearman")
    return ("accuracy", "f1") if len(labels) == 2 else ("accuracy",)


def guess_text(data: Data) -> Guess[TextTask]:
    """Makes a task of sentences, or pairs of them, with a label.

    Raises UserError if no column looks like text, or none like a label.

    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "tones.csv"
    >>> _ = path.write_text("n,Review Text,stars" + "".join(
    ...     f"\\n{n},well written,{n % 3}" for n in range(9)))
    >>> guess_text(Data(str(path), None, {})).task.labels
    ('0', '1', '2')
    """
    rows = read_source(data.source, "train")
    label = data.given.get("label") or label_column(data.source, rows)
    text = tuple(data.given.get("text") or text_columns(data.source, rows, label))
    check_columns(data.source, rows, label, *text)
    _check_labeled(data.source, rows, label)
    labels, line = _classes(data, rows, label)
    how = "the same share of every class" if labels else "evenly spaced by value"
    where, count, held = data.held_out_part(len(rows), how)
    task = TextTask(
        name=data.name,
        train=data.source,
        text=text,
        label=label,
        labels=labels,
        metrics=_metrics(labels),
        **where,
    )
    texts = f"text column{'s' * (len(text) > 1)}: {' and '.join(text)}"
    lines = (f"{texts}; say otherwise with --task.text", line, held)
    return Guess(task, count, length(rows, text), lines)


def guess_images(data: Data) -> Guess[ImageTask]:
    """Makes a task of images with a label: a folder a class, or a table with a column of paths.

    Raises UserError if no column looks like images, or none like a label.
    """
    folder = user_path(data.source)
    beside = [name for name in SPLIT_FOLDERS if (folder / name).is_dir()]
    if (folder / "train").is_dir() and beside:
        held = data.held_out or str(folder / beside[0])
        data = dataclasses.replace(data, source=str(folder / "train"), held_out=held)
        named = Data(str(folder), None, {}).name
    else:
        named = data.name
    table = not folder.is_dir() and data.source.partition(":")[0] not in SCHEMES
    image = data.given.get("image", "image")
    rows = read_image_source(data.source, "train", image)
    if "image" not in data.given and image not in rows[0]:
        image = next((name for name, value in rows[0].items() if _is_image(value)), None)
        if image is None:
            raise UserError(_none_of("images", data.source, rows, "image"))
    label = data.given.get("label") or label_column(data.source, rows, image)
    check_columns(data.source, rows, label, image)
    _check_labeled(data.source, rows, label)
    if folder.is_dir():
        _check_subfolders(folder, {row[label] for row in rows})
    labels, line = _classes(data, rows, label)
    if not labels:
        raise UserError(f"{data.source}: column {label!r} holds numbers: images need class names")
    where, count, held = data.held_out_part(len(rows), "the same share of every class")
    if table:  # paths in the rows start from the table's folder
        where = {name: _absolute(value) for name, value in where.items()}
        where["data_dir"] = str(folder.absolute().parent)
    train = _absolute(data.source) if table else data.source
    task = ImageTask(named, train, image=image, label=label, labels=labels, **where)
    return Guess(task, count, 1, (line, held))


def guess_language(data: Data) -> Guess[LanguageTask]:
    """Makes a task of texts to continue: chats, prompts with answers, or plain text.

    Raises UserError if no column looks like text.
    """
    rows = read_source(data.source, "train")
    fields, columns = _format(data, rows)
    where, count, held = data.held_out_part(len(rows), "evenly spaced")
    task = LanguageTask(data.name, data.source, packing=False, **fields, **where)
    line = (
        f"format: {task.format} (columns: {', '.join(columns)}); say otherwise with --task.format"
    )
    return Guess(task, count, length(rows, columns), (line, held))


def _format(data: Data, rows: Sequence[Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the fields of the format, and the columns that it reads."""
    fields = {
        name: data.given[name] for name in ("format", "prompt", "completion") if name in data.given
    }
    if fields:
        return fields, tuple(rows[0])
    for columns, name in CHATS:
        if all(rows[0].get(column) is not None for column in columns):
            return {"format": name}, columns
    named = small_names(rows)
    for names in ANSWERS:
        if set(names) <= set(named):
            prompt, answer = columns = tuple(named[name] for name in names)
            templates = {"prompt": f"{{{prompt}}}\n\n", "completion": f"{{{answer}}}"}
            return {"format": "template", **templates}, columns
    column = longest(rows, ())
    if column is None:
        known = f"text in a known format ({', '.join(FORMATS)})"
        raise UserError(_none_of(known, data.source, rows, "format"))
    return {"format": "template", "completion": f"{{{column}}}"}, (column,)


def label_column(source: str, rows: Sequence[Row], *others: str) -> str:
    """Returns the column that holds the label: by its name, or else the one with fewest values.

    If every column has many values, it is the only one of numbers, for a regression.
    """
    columns = [name for name in rows[0] if name not in others and not words(name) & NO_CONTENT]
    named = by_name(columns, LABEL_NAMES)
    if named:
        return named
    counts = {
        name: len({str(value) for value in values_of(rows, name)})
        for name in columns
        if all(isinstance(value, str | int | float) for value in values_of(rows, name))
    }
    few = [
        name for name, n in counts.items() if 2 <= n <= min(MOST_NUMBERED_CLASSES, len(rows) // 2)
    ]
    if few:
        return min(reversed(few), key=lambda name: counts[name])
    quantities = [name for name in counts if _is_quantity(values_of(rows, name))]
    if len(quantities) != 1:
        raise UserError(_none_of("a label", source, rows, "label"))
    return quantities[0]


def _is_quantity(values: Sequence[Any]) -> bool:
    """True if the values are numbers, and not the numbers of the rows.

    >>> [_is_quantity(values) for values in (["3.5", "2"], [7, 8, 9], ["3", "good"])]
    [True, False, False]
    """
    numbers = [number for value in values if (number := _number(value)) is not None]
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    return len(numbers) == len(values) > 1 and steps != {1.0}


def text_columns(source: str, rows: Sequence[Row], label: str) -> tuple[str, ...]:
    named = small_names(rows)
    for pair in PAIRS:
        if set(pair) <= set(named) - {label.strip().casefold()}:
            return tuple(named[name] for name in pair)
    texts = [name for name in rows[0] if name != label and _is_text(rows, name)]
    column = by_name(texts, TEXT_NAMES) or longest(rows, (label,))
    if column is None:
        raise UserError(_none_of("text", source, rows, "text"))
    return (column,)


def small_names(rows: Sequence[Row]) -> dict[str, str]:
    """Returns the columns by their names in small letters."""
    return {name.strip().casefold(): name for name in rows[0]}


def by_name(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Returns the column with one of some names, or else with one of them as a word in its name."""
    whole = [c for name in names for c in columns if c.strip().casefold() == name]
    part = [c for name in names for c in columns if name in words(c)]
    return next(iter([*whole, *part]), None)


def words(name: str) -> set[str]:
    """Splits a column's name into its words.

    >>> sorted(words("Review Text")), sorted(words("starRating"))
    (['review', 'text'], ['rating', 'star'])
    """
    return {word.casefold() for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", name)}


def longest(rows: Sequence[Row], others: Sequence[str]) -> str | None:
    columns = [name for name in rows[0] if name not in others and _is_text(rows, name)]
    totals = {name: sum(len(value) for value in values_of(rows, name)) for name in columns}
    return max(columns, key=lambda name: totals[name], default=None)


def _is_text(rows: Sequence[Row], column: str) -> bool:
    """True if a column holds text: strings that are not all numbers, paths of images or names."""
    values = values_of(rows, column)
    strings = bool(values) and all(isinstance(value, str) for value in values)
    numbers = all(_number(value) is not None for value in values)
    return strings and not numbers and not all(map(_is_image, values))


def _is_image(value: object) -> bool:
    return isinstance(value, bytes | np.ndarray) or str(value).lower().endswith(IMAGE_SUFFIXES)


def values_of(rows: Sequence[Row], column: str) -> list[Any]:
    """Returns the values of a column, without missing ones."""
    values = (row.get(column) for row in rows)
    return [value for value in values if value is not None and value != "" and value == value]


def _classes(data: Data, rows: Sequence[Row], column: str) -> tuple[tuple[str, ...], str]:
    """Returns the class names of a label column, none for regression, and the line about them."""
    say = "say otherwise with --task.label"
    if "labels" in data.given:
        return tuple(data.given["labels"]), f"label column: {column}; {say}"
    values = values_of(rows, column)
    names = {str(value) for value in values}
    if len(names) < 2:
        raise UserError(
            f"{data.source}: column {column!r} has {len(names)} value: a label needs two or more; "
            "name its column with --task.label"
        )
    numbers = {name: _number(name) for name in names}
    if None not in numbers.values():
        whole = all(float(number).is_integer() for number in numbers.values() if number is not None)
        if not whole or len(names) > MOST_NUMBERED_CLASSES:
            return (), f"label column: {column} (numbers: regression); {say}"
        labels = tuple(sorted(names, key=lambda name: (numbers[name], name)))
    elif len(names) > max(MOST_NUMBERED_CLASSES, len(values) // 2):
        odd = next(str(value) for value in values if _number(value) is None)
        raise UserError(
            f"{data.source}: column {column!r} is not a label: its {len(names):,} different values "
            f"in {len(values):,} rows are too many classes, and {odd[:40]!r} is not a number; "
            "name the label's column with --task.label, or what separates several labels with "
            "--task.separator"
        )
    else:
        labels = tuple(sorted(names))
    return labels, f"label column: {column} ({len(labels)} classes: {shown(labels)}); {say}"


def shown(labels: Sequence[str]) -> str:
    quoted = [f'"{name}"' if "," in name else name for name in labels]
    return ", ".join(quoted if len(labels) <= 12 else (*quoted[:3], "...", quoted[-1]))


def _number(text: object) -> float | None:
    try:
        number = float(str(text))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def length(rows: Sequence[Row], columns: Sequence[str]) -> int:
    sizes = [sum(len(_written(row.get(name))) for name in columns) for row in rows]
    return math.ceil(float(np.quantile(sizes, 0.99)) / BYTES_PER_TOKEN) + 4


def _written(value: object) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode(errors="replace")


def check_columns(source: str, rows: Sequence[Row], *columns: str) -> None:
    for column in columns:
        if column not in rows[0]:
            known = ", ".join(map(repr, rows[0]))
            raise UserError(
                f"{source}: no column {column!r}{nearest(column, rows[0])}: choose one of {known}"
            )


def _check_labeled(source: str, rows: Sequence[Row], label: str) -> None:
    """Raises `UserError` if a row has no label."""
    places = [n for n, row in enumerate(rows, start=1) if not values_of([row], label)]
    if places:
        raise UserError(
            f"{source}: {len(places):,} of {len(rows):,} rows without a label in column {label!r}, "
            f"row {places[0]} first: fill it in, or leave them out"
        )


def _check_subfolders(folder: Path, classes: Collection[str]) -> None:
    """Raises `UserError` if all images of a folder are below one of its subfolders."""
    if len(classes) == 1:
        (only,) = classes
        raise UserError(
            f"{folder}: all images are in the subfolder {only!r}: give a folder with a subfolder "
            f"for each class, as {folder / only} may be"
        )


def _none_of(what: str, source: str, rows: Sequence[Row], field: str) -> str:
    columns = ", ".join(map(str, rows[0]))
    return (
        f"{source}: no column looks like {what} (columns: {columns}): name it with --task.{field}, "
        "or take a model for such data (text encoders learn from texts with labels, language "
        "models from conversations or texts, image encoders from images with labels)"
    )


def _absolute(value: Any) -> Any:
    return str(user_path(value).absolute()) if isinstance(value, str) else value
