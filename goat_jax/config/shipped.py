"""Configs that come with the library, by name: ``demo`` is ``configs/demo.py``."""

from pathlib import Path

from goat_jax.errors import UserError, nearest

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_configs() -> dict[str, Path]:
    """Returns the config files by name: those inside the wheel, or those of the source tree.

    >>> "demo" in shipped_configs()
    True
    """
    folders = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    folder = next((folder for folder in folders if folder.is_dir()), _PACKAGE)
    return {file.stem: file for file in sorted(folder.glob("*.py")) if file.stem != "__init__"}


def config_file(source: str) -> Path:
    """Returns the file of a config that is given by its path, or by its name if it is shipped.

    Raises:
        UserError: neither a file nor a known name.

    >>> config_file("demmo")
    Traceback (most recent call last):
    goat_jax.errors.UserError: no config is called demmo (did you mean 'demo'?): give the path of \
a file, or one of chat, code, commonsense, demo, digits, glue, gsm8k, math, metamathqa, vision
    """
    known, file = shipped_configs(), Path(source)
    if file.is_file():
        return file
    if source in known:
        return known[source]
    if file.name != source or file.suffix:
        name = f": the shipped one is --config {file.stem}" if file.stem in known else ""
        raise UserError(f"config file {source} does not exist{name}")
    raise UserError(
        f"no config is called {source}{nearest(source, known)}: give the path of a file, or one "
        f"of {', '.join(known)}"
    )
