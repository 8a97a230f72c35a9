"""The programs in ``train/``, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[2] / "train"


def load_program(name: str) -> ModuleType:
    """The module of ``train/NAME.py``; its main is not run."""
    spec = importlib.util.spec_from_file_location(f"train_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
