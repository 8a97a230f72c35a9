"""Task registry: `TASKS` maps each name to a constructor.

Each family of tasks is one file in this folder, whose constructors are listed here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from goat_jax.data.metrics import MULTI_LABEL_METRICS
from goat_jax.data.tasks.benchmarks.chat import mt_bench, wizardlm
from goat_jax.data.tasks.benchmarks.code import codefeedback, humaneval
from goat_jax.data.tasks.benchmarks.commonsense import FOLDERS, JOINT, commonsense, commonsense170k
from goat_jax.data.tasks.benchmarks.glue import GLUE, glue
from goat_jax.data.tasks.benchmarks.math import gsm8k, metamath, metamathqa
from goat_jax.data.tasks.benchmarks.vision import VISION, vision
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.image import ImageTask, digits, fashion_mnist, image_files
from goat_jax.data.tasks.language import LanguageTask
from goat_jax.data.tasks.multi_label import MultiLabelTask
from goat_jax.data.tasks.text import Examples, TextTask, load_examples
from goat_jax.data.tasks.tokens import TokenTask
from goat_jax.errors import UserError, nearest
from goat_jax.validation.fields import call
from goat_jax.validation.renamed import hint_in_error

__all__ = [
    "KINDS",
    "TASKS",
    "EvalTask",
    "Examples",
    "ImageTask",
    "LanguageTask",
    "MultiLabelTask",
    "Task",
    "TextTask",
    "TokenTask",
    "codefeedback",
    "commonsense",
    "commonsense170k",
    "digits",
    "fashion_mnist",
    "files",
    "gsm8k",
    "humaneval",
    "image_files",
    "language_files",
    "load_examples",
    "make_task",
    "metamath",
    "mt_bench",
    "multi_label_files",
    "reviews",
    "token_files",
    "wizardlm",
]

Task = TextTask | TokenTask | LanguageTask | ImageTask | EvalTask

KINDS: dict[str, type[Task]] = {
    "text": TextTask,
    "multi_label": MultiLabelTask,
    "tokens": TokenTask,
    "language": LanguageTask,
    "eval": EvalTask,
    "image": ImageTask,
}
"""Kind of a task, as run.json names it -> its class."""


def files(
    train: str,
    evaluation: str,
    text: tuple[str, ...] = ("sentence",),
    label: str = "label",
    labels: tuple[str, ...] = (),
    metrics: tuple[str, ...] = ("accuracy",),
    *,
    name: str = "files",
    data_dir: str | None = None,
    train_limit: int | None = None,
    evaluation_limit: int | None = None,
    held_out: int = 0,
) -> TextTask:
    """Makes a task from the user's files (or any two sources); arguments as in `TextTask`.

    >>> files("train.csv", "dev.csv", labels=("negative", "positive")).text
    ('sentence',)
    """
    return TextTask(
        name=name,
        train=train,
        evaluation=evaluation,
        text=text,
        label=label,
        labels=labels,
        metrics=metrics,
        data_dir=data_dir,
        train_limit=train_limit,
        evaluation_limit=evaluation_limit,
        held_out=held_out,
    )


def multi_label_files(
    train: str,
    evaluation: str,
    text: tuple[str, ...] = ("text",),
    label: str = "labels",
    labels: tuple[str, ...] = (),
    metrics: tuple[str, ...] = MULTI_LABEL_METRICS,
    **options: Any,
) -> MultiLabelTask:
    """Makes a task of rows with several labels from the user's files; as `MultiLabelTask`.

    >>> multi_label_files("a.csv", "b.csv", labels=("law", "art"), separator=";").metrics
    ('micro_f1', 'macro_f1')
    """
    name = options.pop("name", "multi_label_files")
    return MultiLabelTask(name, train, evaluation, text, label, labels, metrics, **options)


def token_files(train: str, evaluation: str, labels: tuple[str, ...], **options: Any) -> TokenTask:
    """Makes a task of a tag for each word from the user's files; arguments as in `TokenTask`.

    >>> token_files("a.jsonl", "b.jsonl", ("O", "B-PER", "I-PER"), tags="tags").tokens
    'tokens'
    """
    return TokenTask(options.pop("name", "token_files"), train, evaluation, labels, **options)


def reviews(
    *,
    data_dir: str | None = None,
    train_limit: int | None = None,
    evaluation_limit: int | None = None,
) -> TextTask:
    """Makes the demo task: sentiment of movie-review sentences (`goat_jax.data.sources.reviews`).

    Nothing is fetched before the rows are loaded. Arguments as in `TextTask`; `data_dir` is the
    cache folder.

    >>> reviews().evaluation
    'reviews:test'
    """
    return TextTask(
        name="reviews",
        train="reviews:train",
        evaluation="reviews:test",
        text=("sentence",),
        label="label",
        labels=("negative", "positive"),
        metrics=("accuracy", "f1"),
        data_dir=data_dir,
        train_limit=train_limit,
        evaluation_limit=evaluation_limit,
    )


def language_files(
    train: str, evaluation: str, format: str = "prompt_completion", **options: Any
) -> LanguageTask:
    """Makes a language-modeling task from the user's files; arguments as in `LanguageTask`.

    >>> language_files("a.jsonl", "b.jsonl", "messages").packing
    True
    """
    return LanguageTask(
        options.pop("name", "language_files"), train, evaluation, format=format, **options
    )


TASKS: dict[str, Callable[..., Task]] = {
    "files": files,
    "multi_label_files": multi_label_files,
    "token_files": token_files,
    "reviews": reviews,
    **{name: partial(glue, name) for name in GLUE},
    "language_files": language_files,
    "gsm8k": gsm8k,
    "metamath": metamath,
    "metamathqa": metamathqa,
    "codefeedback": codefeedback,
    "humaneval": humaneval,
    "wizardlm": wizardlm,
    "mt_bench": mt_bench,
    JOINT: commonsense170k,
    **{name: partial(commonsense, name) for name in FOLDERS},
    "image_files": image_files,
    **{name: partial(vision, name) for name in VISION},
    "digits": digits,
    "fashion_mnist": fashion_mnist,
}


def make_task(name: str, /, **options: object) -> Task:
    """Returns `TASKS[name](**options)`; raises UserError for an unknown task or option.

    >>> make_task("rtee")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    goat_jax.errors.UserError: unknown task 'rtee' (did you mean 'rte'?): use one of files, ...
    """
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise UserError(f"unknown task {name!r}{nearest(name, TASKS)}: use one of {known}")
    try:
        return call(TASKS[name], options, f"task {name}", others=True)
    except TypeError as error:
        hint = hint_in_error(str(error))
        raise UserError(f"task {name}: {error}{hint}") from None
