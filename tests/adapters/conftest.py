"""The PyTorch restatement of the layer, for every test of this folder."""

import pytest


@pytest.fixture(scope="session")
def torch_layer():
    """The module ``helpers/torch_layer.py``; without torch the test is skipped, visibly."""
    pytest.importorskip("torch", reason="parity needs the extra 'test', which brings torch")
    import torch_layer

    return torch_layer
