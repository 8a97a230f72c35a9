"""Checks that every id is inside the table in which a model looks it up.

An array library returns NaN or another row's vector for an id out of range, without an error.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from goat_jax.errors import UserError

TABLES = {
    "vocab_size": "the tokenizer gives token {id}, but the model has {size}: take both from one"
    " checkpoint",
    "type_vocab_size": "the tokenizer gives token type {id}, but the model has {size}: take both"
    " from one checkpoint",
    "num_tasks": "the rows have task {id}, but the adapter has tasks 0 to {last}: raise num_tasks"
    " or number the tasks from 0",
}
"""The field that holds a table's size -> the error message for an id outside the table."""


def table_sizes(config: object, router: object = None) -> dict[str, int]:
    """Returns the number of rows of each table that a model and its adapters' router use.

    Args:
      config: the model's config object.
      router: the adapters' router (`AdapterSpec.router`).

    >>> from types import SimpleNamespace
    >>> table_sizes(SimpleNamespace(vocab_size=9, type_vocab_size=0))
    {'vocab_size': 9}
    """
    sizes = {name: getattr(config, name, None) for name in ("vocab_size", "type_vocab_size")}
    tasks = getattr(router, "num_tasks", None)
    # Tasks are numbered from 0 to num_tasks. A model without token types has size 0 and reads none.
    sizes["num_tasks"] = None if tasks is None else tasks + 1
    return {name: size for name, size in sizes.items() if size}


def check_ids(ids: Mapping[str, Iterable[Any]], sizes: Mapping[str, int]) -> None:
    """Raises UserError if an id has no row in its table.

    Args:
      ids: a key of `TABLES` -> arrays or lists of the ids that are looked up in that table.
      sizes: the result of `table_sizes`; ids of a table that is not in it are not checked.

    >>> check_ids({"vocab_size": [[3, 9]]}, {"vocab_size": 9})
    Traceback (most recent call last):
    goat_jax.errors.UserError: the tokenizer gives token 9, but the model has 9: take both from \
one checkpoint
    """
    for name, arrays in ids.items():
        if name not in sizes:
            continue
        size = sizes[name]
        arrays = [np.asarray(array) for array in arrays]
        for array in arrays:
            wrong = array[(array < 0) | (array >= size)]
            if wrong.size:
                shown = int(wrong.max() if wrong.max() >= size else wrong.min())
                raise UserError(TABLES[name].format(id=shown, size=size, last=size - 1))
