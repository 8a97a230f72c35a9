"""Detects the format of an adapter and reads it from a folder or file."""

from __future__ import annotations

from pathlib import Path

from goat_jax.errors import UserError
from goat_jax.files import user_path
from goat_jax.interop.folders import ADAPTER_CONFIG, read_about
from goat_jax.interop.import_adapter import Imported
from goat_jax.interop.peft import routed as peft_routed
from goat_jax.interop.peft.read import read_config, read_peft
from goat_jax.interop.reference_code import TYPE, is_published, read_published


def read_adapter(source: Path) -> Imported:
    """Reads an adapter in PEFT's format or with the published code's names.

    Args:
        source: a PEFT folder, or a folder or safetensors file with the published names.

    Raises:
        UserError: there is no adapter, its type is unknown, or its tensors are pickled or damaged.
    """
    source = user_path(source)
    if not source.exists():
        raise UserError(f"{source} does not exist: give the folder of an adapter")
    config = read_config(source)
    if config.get("peft_type") == peft_routed.TYPE and "settings" not in config:
        return peft_routed.read_routed(source, config)
    # Earlier versions wrote the published names with the type of the tuner, and settings.
    published = config.get("peft_type") in (TYPE, peft_routed.TYPE)
    if published or (not config and is_published(source)):
        return read_published(source, config, read_about(source).get("base_sha256"))
    if not config:
        raise UserError(f"{source} has no {ADAPTER_CONFIG}: give the folder of an adapter")
    return read_peft(source, config)
