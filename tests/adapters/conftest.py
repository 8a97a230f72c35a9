"""The PyTorch restatement of the layer, for every test of this folder."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def torch_layer():
    """The module ``tests/torch_layer.py``; without torch the test is skipped, visibly."""
    pytest.importorskip("torch", reason="parity needs the extra 'test', which brings torch")
    path = Path(__file__).parent.parent / "torch_layer.py"
    spec = importlib.util.spec_from_file_location("torch_layer", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module
