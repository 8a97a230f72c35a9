"""Finds pretrained models: in a folder, a GGUF file, a package, or on the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goat_jax.errors import UserError, first_line, nearest
from goat_jax.files import report_unusable_cache, temporary_folder, user_path
from goat_jax.pretrained.end_tokens import with_end_tokens
from goat_jax.pretrained.mxfp4 import dequantized
from goat_jax.pretrained.packaged_models import PACKAGED_MODELS
from goat_jax.pretrained.safetensors import Weights, open_weights, read_json
from goat_jax.pretrained.text_part import text_config, text_weights

PACKAGE = "package:"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
SETTINGS = ("*.json", "*.model", "*.txt", "*.jinja")
"""Files of a hub repository with a model's config and its tokenizer."""

HUB_FILES = (*SETTINGS, "*.safetensors")
"""Files fetched from a hub repository; never pickled weights, never code."""


def find_model(path: str, files: Sequence[str] = HUB_FILES) -> Path:
    """Returns the folder or GGUF file of a model, after fetching it if necessary.

    Args:
        path: a folder, a .gguf file, ``package:NAME`` for a model that a package contains, or a
            name on the Hugging Face hub such as ``roberta-large``. A local path goes first.
        files: patterns of the files to fetch from the hub.

    Raises:
        UserError: there is no such package, or neither a folder nor a repository of this name.

    >>> find_model("package:minilmm")
    Traceback (most recent call last):
    goat_jax.errors.UserError: no packaged model 'minilmm' (did you mean 'minilm'?): choose one of \
minilm, smollm2, dinov2-small
    """
    if path.startswith(PACKAGE):
        name = path.removeprefix(PACKAGE)
        if name not in PACKAGED_MODELS:
            raise UserError(
                f"no packaged model {name!r}{nearest(name, PACKAGED_MODELS)}: "
                f"choose one of {', '.join(PACKAGED_MODELS)}"
            )
        return PACKAGED_MODELS[name]()
    local = user_path(path)
    if local.exists() or not HUB_NAME.fullmatch(path):
        return local
    return _from_hub(path, files)


def _from_hub(name: str, files: Sequence[str]) -> Path:
    import huggingface_hub

    def fetch(**cache: Any) -> Path:
        get = huggingface_hub.snapshot_download
        return Path(get(name, allow_patterns=list(files), **cache))

    try:
        try:
            return fetch()
        except OSError as error:  # HTTP errors are OSErrors, too, but have no errno
            if error.errno is None:
                raise
            report_unusable_cache(huggingface_hub.constants.HF_HUB_CACHE, error)
            return fetch(cache_dir=temporary_folder() / "hub")
    except Exception as error:  # HTTP, cache and name errors are of many types
        raise UserError(
            f"{name} is not a folder here, and the Hugging Face hub did not provide it "
            f"({first_line(error)}): check the path, the name or the network"
        ) from None


def open_checkpoint(path: Path) -> tuple[dict[str, Any], Weights]:
    """Opens a checkpoint: its config.json as a dict, and its tensors by name, read on access.

    Of a multimodal checkpoint, these are the language model's.

    Args:
        path: a folder with config.json and safetensors, or a .gguf file.

    Raises:
        UserError: no such folder, no config, no weights, a damaged file.
    """
    if path.suffix == ".gguf":
        from goat_jax.pretrained.gguf.weights import open_gguf

        return open_gguf(path)
    hf = with_end_tokens(read_json(path / "config.json", "a checkpoint folder"), path)
    config = text_config(hf)
    return config, dequantized(config, text_weights(hf, open_weights(path)))
