"""The task table: every family adds its constructors here.

A family is a file beside this one that gives rows of `TASKS`; today all are text tasks.
"""

from collections.abc import Callable
from functools import partial

from goat_jax.data.examples import Examples, TextTask, load_examples
from goat_jax.data.glue import GLUE, glue
from goat_jax.errors import UserError, nearest

__all__ = ["TASKS", "Examples", "TextTask", "files", "load_examples", "make_task", "reviews"]


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
) -> TextTask:
    """A task over the user's own files (or any two sources); arguments as in `TextTask`.

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
    )


def reviews(
    *,
    data_dir: str | None = None,
    train_limit: int | None = None,
    evaluation_limit: int | None = None,
) -> TextTask:
    """The demo task, movie-review sentences, negative or positive (`goat_jax.data.reviews`).

    Nothing is fetched before its rows are loaded; `data_dir` is the cache folder.

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


TASKS: dict[str, Callable[..., TextTask]] = {
    "files": files,
    "reviews": reviews,
    **{name: partial(glue, name) for name in GLUE},
}


def make_task(name: str, **options: object) -> TextTask:
    """The task `TASKS[name](**options)`; UserError names an unknown task or option.

    >>> make_task("rtee")
    Traceback (most recent call last):
    goat_jax.errors.UserError: unknown task 'rtee' (did you mean 'rte'?): use one of files, \
reviews, cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte
    """
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise UserError(f"unknown task {name!r}{nearest(name, TASKS)}: use one of {known}")
    try:
        return TASKS[name](**options)
    except TypeError as error:
        raise UserError(f"task {name}: {error}") from None
