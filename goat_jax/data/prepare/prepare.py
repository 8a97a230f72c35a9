"""Makes a task's data set, once: files fetched or given, then rows in the form of TFDS.

What is made is read by name, `tfds:NAME@SPLIT`, by this package and by tensorflow_datasets itself,
without TensorFlow. TFDS writes aside and renames, so a set is there as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goat_jax.data.prepare.archives import unpack
from goat_jax.data.prepare.fetch import Remote, Report, check, fetch, nothing
from goat_jax.data.prepare.glue import GLUE_RECIPES
from goat_jax.data.prepare.recipe import Recipe
from goat_jax.data.prepare.vision import VISION_RECIPES
from goat_jax.errors import UserError, first_line, nearest
from goat_jax.files import user_path

RECIPES: dict[str, Recipe] = {**VISION_RECIPES, **GLUE_RECIPES}
"""Name of a task -> how its data set is made."""


@dataclass(frozen=True)
class Prepared:
    """A data set that is there.

    Attributes:
      folder: of the set, below the folder of all sets.
      rows: split -> how many.
      fresh: whether it was made now.
    """

    folder: Path
    rows: Mapping[str, int]
    fresh: bool


def default_folder() -> Path:
    """Where TFDS has its data sets.

    >>> default_folder().name
    'tensorflow_datasets'
    """
    return Path.home() / "tensorflow_datasets"


def prepare(
    task: str,
    out: str | Path | None = None,
    archives: str | Path | None = None,
    report: Report = nothing,
) -> Prepared:
    """Makes the set of a task, or finds that it is there.

    Args:
      task: a key of `RECIPES`.
      out: folder of all sets, `default_folder()` if None; give it to a task as ``data_dir``.
      archives: a folder that already has some or all of the files; the others are fetched into
        ``out/downloads/goat_jax``.
      report: shows how far fetching is.

    Raises:
      UserError: an unknown task, files that cannot be fetched or are others than meant, archives
        without the expected files in them.

    >>> prepare("dtdd")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    goat_jax.errors.UserError: no recipe for 'dtdd' (did you mean 'dtd'?); there are: cars, ...
    """
    if task not in RECIPES:
        hint = nearest(task, RECIPES)
        raise UserError(f"no recipe for {task!r}{hint}; there are: {', '.join(RECIPES)}")
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
    recipe: Recipe, folder: Path, archives: str | Path | None, report: Report = nothing
) -> dict[str, Path]:
    """Every file of a recipe by name: those in `archives` as they are, the others fetched."""
    given = None if archives is None else user_path(archives)
    if given is not None and not given.is_dir():
        raise UserError(f"{given}: no such folder: give the one with {_names(recipe)}")
    files = {}
    for remote in recipe.remotes:
        own = None if given is None else given / remote.filename
        if own is not None and own.exists():
            if own.is_file():
                check(own, remote)
            files[remote.filename] = own
        elif not remote.url:
            raise UserError(_by_hand(recipe, remote, given))
        else:
            files[remote.filename] = fetch(remote, folder, report)
    return files


def _by_hand(recipe: Recipe, remote: Remote, given: Path | None) -> str:
    where = "a folder and name it with --archives" if given is None else str(given)
    return f"{remote.filename} cannot be fetched: {recipe.note}; put {remote.filename} into {where}"


def _names(recipe: Recipe) -> str:
    return ", ".join(remote.filename for remote in recipe.remotes)


def open_builder(recipe: Recipe, root: Path) -> Any:
    """TFDS's builder of a set, or one of ours for a set that TFDS does not have."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # noqa: F401  builders of the older kind, glue, register here

    tfds.disable_progress_bar()
    if recipe.features is None:
        return tfds.builder(recipe.builder, data_dir=str(root), file_format="array_record")
    return _own_builder(recipe, root, tfds)


def _own_builder(recipe: Recipe, root: Path, tfds: Any) -> Any:
    return tfds.dataset_builders.AdhocBuilder(
        name=recipe.builder,
        version="1.0.0",
        features=tfds.features.FeaturesDict(dict(recipe.features(tfds.features))),  # type: ignore
        split_datasets={},  # the rows come later, as those of every recipe
        description=recipe.licence,
        data_dir=str(root),
        file_format="array_record",
    )


def _write(recipe: Recipe, builder: Any, files: Mapping[str, Path], scratch: Path) -> None:
    """Hands the rows to the builder in place of what it would download."""
    import tensorflow_datasets as tfds

    if recipe.read is not None:
        rows = recipe.read(files)
        builder._split_generators = lambda manager: dict(rows)
    else:
        original = builder._split_generators
        manager = _Local(recipe, files, scratch)
        builder._split_generators = lambda _: original(manager)
    settings = tfds.download.DownloadConfig(try_download_gcs=False, register_checksums=False)
    with contextlib.redirect_stdout(io.StringIO()):  # the verb says what it does
        builder.download_and_prepare(download_config=settings)


class _Local:
    """What TFDS's builders of texts ask for files, answered with those that are here."""

    def __init__(self, recipe: Recipe, files: Mapping[str, Path], scratch: Path):
        self._by_url = {remote.url: files[remote.filename] for remote in recipe.remotes}
        self._scratch = scratch

    def download(self, wanted: Any) -> Any:
        if isinstance(wanted, Mapping):
            return {name: str(self._by_url[url]) for name, url in wanted.items()}
        return str(self._by_url[wanted])

    def download_and_extract(self, url: str) -> str:
        return str(unpack(self._by_url[url], self._scratch))


def _counts(builder: Any) -> dict[str, int]:
    return {name: split.num_examples for name, split in builder.info.splits.items()}
