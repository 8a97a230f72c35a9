"""The PyTorch restatement of the layer, for every test of this folder."""

import pytest


@pytest.fixture(scope="session")
def torch_layer():
    """The module ``helpers/torch_layer.py``; without torch the test is skipped, visibly."""
    return pytest.importorskip("torch_layer", reason="needs the extra 'test', which brings torch")
