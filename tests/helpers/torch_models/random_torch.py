"""Torch models of random numbers alone."""

from collections.abc import Callable
from typing import Any

import torch


def randomized(make: Callable[[], Any], seed: int = 0) -> Any:
    """Returns a model in evaluation mode with noise on every parameter; torch's own state stays.

    torch starts with zero biases and norms of one: half the names could be mixed up.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = make().eval()
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
