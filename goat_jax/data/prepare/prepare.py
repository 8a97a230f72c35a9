"""Builds a task's data set once, from fetched or given files, in the format of TFDS.

The result is read by name, `tfds:NAME@SPLIT`, by this package and by tensorflow_datasets, without
TensorFlow. TFDS writes to a temporary folder and renames it, so a set is complete or absent.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from goat_jax.data.prepare.archives import unpack
from goat_jax.data.prepare.fetch import Progress, RemoteFile, check, fetch, nothing
from goat_jax.data.prepare.glue import GLUE_RECIPES
from goat_jax.data.prepare.recipe import Recipe
from goat_jax.data.prepare.vision import VISION_RECIPES
from goat_jax.errors import UserError, first_line, nearest
from goat_jax.extras import import_extra
from goat_jax.files import user_path

RECIPES: dict[str, Recipe] = {**VISION_RECIPES, **GLUE_RECIPES}
"""Name of a task -> the recipe of its data set."""


@dataclass(frozen=True)
class Prepared:
    """Result of `prepare`: a data set on disk.

    Attributes:
      folder: the set's folder, inside the folder of all sets.
      rows: split -> its number of rows.
      fresh: whether this call built the set.
    """

    folder: Path
    rows: Mapping[str, int]
    fresh: bool


def default_folder() -> Path:
    """Returns the folder in which TFDS keeps its data sets by default.

    >>> default_folder().name
    'tensorflow_datasets'
    """
    return Path.home() / "tensorflow_datasets"


def prepare(
    task: str,
    out: str | Path | None = None,
    archives: str | Path | None = None,
    report: Progress = nothing,
) -> Prepared:
    """Builds the data set of a task, unless it exists already.

    Args:
      task: a key of `RECIPES`.
      out: the folder of all sets, `default_folder()` if None; pass it to a task as ``data_dir``.
      archives: a folder that already has some or all of the files; the others are fetched into
        ``out/downloads/goat_jax``.
      report: the callback for download progress.

    Raises:
      UserError: an unknown task, files that cannot be fetched or have the wrong size or checksum,
        or archives without the expected content.

    >>> prepare("dtdd")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    goat_jax.errors.UserError: no recipe for 'dtdd' (did you mean 'dtd'?): choose one of cars, ...
    """
    if task not in RECIPES:
        hint = nearest(task, RECIPES)
        raise UserError(f"no recipe for {task!r}{hint}: choose one of {', '.join(RECIPES)}")
    recipe = RECIPES[task]
    root = default_folder() if out is None else user_path(out)
    builder = open_builder(recipe, root)
    folder = Path(builder.data_path)
    if builder.is_prepared():
        return Prepared(folder, _counts(builder), fresh=False)
    files = gather_files(recipe, root / "downloads" / "goat_jax" / task, archives, report)
    scratch = folder.parent / f".{folder.name}.unpacked"
    try:
        _write(recipe, builder, files, scratch)
    except UserError:
        raise
    except Exception as error:  # damaged archives raise whatever their readers do
        cause = error.__cause__ or error
        raise UserError(
            f"{task}: the archives are not as expected ({type(cause).__name__}: "
            f"{first_line(cause)}): get them again"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Prepared(folder, _counts(builder), fresh=True)


def gather_files(
    recipe: Recipe, folder: Path, archives: str | Path | None, report: Progress = nothing
) -> dict[str, Path]:
    """Returns the path of every file of a recipe: taken from `archives`, or else fetched.

    Raises UserError for a file that is neither in `archives` nor has an address.
    """
    archive_folder = None if archives is None else user_path(archives)
    if archive_folder is not None and not archive_folder.is_dir():
        raise UserError(f"{archive_folder}: no such folder: give the one with {_names(recipe)}")
    files = {}
    for remote in recipe.remotes:
        local = None if archive_folder is None else archive_folder / remote.filename
        if local is not None and local.exists():
            if local.is_file():
                check(local, remote)
            files[remote.filename] = local
        elif not remote.url:
            raise UserError(_by_hand(recipe, remote, archive_folder))
        else:
            files[remote.filename] = fetch(remote, folder, report)
    return files


def _by_hand(recipe: Recipe, remote: RemoteFile, archive_folder: Path | None) -> str:
    where = (
        "a folder and name it with --archives" if archive_folder is None else str(archive_folder)
    )
    return f"{remote.filename} cannot be fetched: {recipe.note}; put {remote.filename} into {where}"


def _names(recipe: Recipe) -> str:
    return ", ".join(remote.filename for remote in recipe.remotes)


def open_builder(recipe: Recipe, root: Path) -> Any:
    """Returns TFDS's builder of a set, or an ad hoc builder for a set that TFDS does not have."""
    tfds = import_extra("tensorflow_datasets", f"preparing {recipe.builder}")
    import_extra("tensorflow_datasets.text", "tfds")  # older builders, glue, register there
    tfds.disable_progress_bar()
    if recipe.features is None:
        return tfds.builder(recipe.builder, data_dir=str(root), file_format="array_record")
    return _own_builder(recipe, recipe.features(tfds.features), root, tfds)


def _own_builder(recipe: Recipe, features: Mapping[str, Any], root: Path, tfds: ModuleType) -> Any:
    return tfds.dataset_builders.AdhocBuilder(
        name=recipe.builder,
        version="1.0.0",
        features=tfds.features.FeaturesDict(dict(features)),
        split_datasets={},  # `_write` supplies the rows, as for every recipe
        description=recipe.licence,
        data_dir=str(root),
        file_format="array_record",
    )


def _write(recipe: Recipe, builder: Any, files: Mapping[str, Path], scratch: Path) -> None:
    """Writes the set: replaces the builder's download by the recipe's rows or local files."""
    import tensorflow_datasets as tfds

    if recipe.read is not None:
        rows = recipe.read(files)
        builder._split_generators = lambda manager: dict(rows)
    else:
        original = builder._split_generators
        manager = _Local(recipe, files, scratch)
        builder._split_generators = lambda _: original(manager)
    settings = tfds.download.DownloadConfig(try_download_gcs=False, register_checksums=False)
    with contextlib.redirect_stdout(io.StringIO()):  # the command line prints its own progress
        builder.download_and_prepare(download_config=settings)


class _Local:
    """Stand-in for TFDS's download manager that returns local files to the text builders."""

    def __init__(self, recipe: Recipe, files: Mapping[str, Path], scratch: Path):
        self._by_url = {remote.url: files[remote.filename] for remote in recipe.remotes}
        self._scratch = scratch

    def download(self, urls: Any) -> Any:
        if isinstance(urls, Mapping):
            return {name: str(self._by_url[url]) for name, url in urls.items()}
        return str(self._by_url[urls])

    def download_and_extract(self, url: str) -> str:
        return str(unpack(self._by_url[url], self._scratch))


def _counts(builder: Any) -> dict[str, int]:
    return {name: split.num_examples for name, split in builder.info.splits.items()}
