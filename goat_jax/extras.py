"""Optional packages: imports one where it is used, or names the extra that installs it."""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

from goat_jax.errors import Notice, UserError

EXTRA_OF = {
    "PIL": "images",
    "datasets": "hub",
    "gguf": "gguf",
    "jax_cuda12_plugin": "plan-gpu",
    "libtpu": "tpu",
    "lm_eval": "lm-eval",
    "mlflow": "mlflow",
    "matplotlib": "plots",
    "onnx": "vision",
    "peft": "torch",
    "pyarrow": "data",
    "qwix": "quant",
    "sklearn": "digits",
    "tensorboardX": "tensorboard",
    "tensorflow_datasets": "data",
    "torch": "torch",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""Optional package, by its import name -> the extra of `goat-jax` that installs it."""


class MissingExtra(UserError):
    """Error for an optional package that is not installed; names the extra to install."""


def import_extra(module: str, purpose: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: the module's dotted name; its package is a key of `EXTRA_OF`.
        purpose: what needs the package, as the subject of the error message.

    Raises:
        MissingExtra: the package is not installed.
    """
    package = module.partition(".")[0]
    extra = EXTRA_OF[package]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is there; one that it needs itself is missing
        raise MissingExtra(f"{purpose} needs {package}: pip install 'goat-jax[{extra}]'") from None


@contextlib.contextmanager
def skipped_without_extra(what: str) -> Iterator[None]:
    """Skips its block with a one-line notice if an optional package is missing.

    It is for by-products of a run, such as figures: a run is not refused because they are missing.

    Args:
        what: the name of what the block makes.
    """
    try:
        yield
    except MissingExtra as error:
        warnings.warn(f"no {what}: {error}", Notice, stacklevel=3)
