"""transformers without its remark that torch is missing, which here is as it should be."""

import importlib
import logging
from typing import Any

REMARK = "PyTorch was not found"


def _other_than_the_remark(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(REMARK)


def import_transformers() -> Any:
    """The module transformers, imported without the remark; from here on it reports errors only.

    While it is imported it sets its logger's level itself, so that a level set before has no
    effect; a filter at the logger stays.

    >>> import_transformers().__name__
    'transformers'
    """
    logger = logging.getLogger("transformers")
    logger.addFilter(_other_than_the_remark)
    try:
        transformers = importlib.import_module("transformers")
    finally:
        logger.removeFilter(_other_than_the_remark)
    logger.setLevel(logging.ERROR)
    return transformers
