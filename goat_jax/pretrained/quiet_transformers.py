"""Imports transformers without its 'PyTorch was not found' warning; torch is not needed here."""

import importlib
import logging
from typing import Any

REMARK = "PyTorch was not found"


def _other_than_the_remark(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(REMARK)


def import_transformers(module: str = "transformers") -> Any:
    """Imports transformers, or a module of it, without the warning; its logger keeps errors only.

    The import sets the logger's level, so a level set before it has no effect; a filter on the
    logger stays in place.

    >>> import_transformers().__name__
    'transformers'
    """
    logger = logging.getLogger("transformers")
    logger.addFilter(_other_than_the_remark)
    try:
        imported = importlib.import_module(module)
    finally:
        logger.removeFilter(_other_than_the_remark)
    logger.setLevel(logging.ERROR)
    return imported
