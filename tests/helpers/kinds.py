"""Values whose declared type is wider than what a test has, checked and narrowed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.registry import make_task
from goat_jax.data.tasks.text import TextTask

T = TypeVar("T")


def expect(kind: type[T], value: object) -> T:
    """Returns the value, which has to be of this class."""
    assert isinstance(value, kind), f"{type(value).__name__}, not {kind.__name__}"
    return value


def text_task(name: str, **options: Any) -> TextTask:
    """`make_task` of a task that classifies texts."""
    return expect(TextTask, make_task(name, **options))


def image_task(name: str, **options: Any) -> ImageTask:
    """`make_task` of a task that classifies images."""
    return expect(ImageTask, make_task(name, **options))


def eval_task(name: str, **options: Any) -> EvalTask:
    """`make_task` of a language task with questions."""
    return expect(EvalTask, make_task(name, **options))


def present(value: T | None) -> T:
    """Returns the value, which has to be there, such as the match of a pattern."""
    assert value is not None
    return value


def compiled(step: Any) -> int:
    """Number of programs that a jitted function was compiled to."""
    return step._cache_size()


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name: `np.savez`, none of whose options a name can be."""
    np.savez(path, **dict[str, Any](arrays))
