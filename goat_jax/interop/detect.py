"""An adapter from a folder or file, of whatever form that can be read."""

from __future__ import annotations

from pathlib import Path

from goat_jax.errors import UserError
from goat_jax.files import user_path
from goat_jax.interop.folders import ADAPTER_CONFIG, read_about
from goat_jax.interop.import_adapter import Imported
from goat_jax.interop.peft_read import read_config, read_peft
from goat_jax.interop.reference_code import TYPE, is_published, read_published


def read_adapter(source: Path) -> Imported:
    """The adapter of a PEFT folder, or of a folder or safetensors file with the published names.

    Raises:
        UserError: no adapter there, one of an unknown type, pickled or damaged tensors.
    """
    source = user_path(source)
    if not source.exists():
        raise UserError(f"{source} does not exist: give the folder of an adapter")
    config = read_config(source)
    if config.get("peft_type") == TYPE or (not config and is_published(source)):
        return read_published(source, config, read_about(source).get("base_sha256"))
    if not config:
        raise UserError(f"{source} has no {ADAPTER_CONFIG}: give the folder of an adapter")
    return read_peft(source, config)
