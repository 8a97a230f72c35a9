"""The fingerprint changes with every bit of the weights, and with nothing else."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from goat_jax.pretrained.fingerprint import fingerprint
from goat_jax.pretrained.safetensors import SINGLE, open_weights


def _of(folder, tensors) -> str:
    save_file(tensors, folder / SINGLE)
    return fingerprint(open_weights(folder))


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(3, 4)).astype(np.float32) for name in ("b", "a", "c.weight")}


def test_shards_and_one_file_have_the_same(save_torch):
    one, shards = (
        open_weights(save_torch("bert", max_shard_size=size).folder) for size in ("1GB", "20KB")
    )
    assert len({entry.file for entry in shards.entries.values()}) > 2
    assert fingerprint(one) == fingerprint(shards)
    assert fingerprint(one) != fingerprint(open_weights(save_torch("bert", seed=1).folder))


def test_order_in_the_file_does_not_count(tensors, tmp_path):
    backwards = dict(reversed(tensors.items()))
    assert _of(tmp_path, tensors) == _of(tmp_path, backwards)


def test_every_change_counts(tensors, tmp_path):
    a = tensors["a"]
    flipped = a.copy()
    flipped.view(np.uint8)[2, 3] ^= 1  # one bit
    variants = [
        tensors,
        tensors | {"a": flipped},
        tensors | {"a": a.reshape(4, 3)},
        tensors | {"a": a.view(np.int32)},
        tensors | {"a": a.astype(np.float64)},
        tensors | {"a": tensors["b"], "b": a},
        {("A" if name == "a" else name): value for name, value in tensors.items()},
        {name: value for name, value in tensors.items() if name != "a"},
        tensors | {"d": np.zeros(0, np.float32)},
    ]
    assert len({_of(tmp_path, variant) for variant in variants}) == len(variants)


def test_scalars_and_bfloat16_can_be_read(tmp_path):
    values = {"scalar": torch.tensor(2.0), "half": torch.ones(3, dtype=torch.bfloat16)}
    save_torch_file(values, tmp_path / SINGLE)
    assert len(fingerprint(open_weights(tmp_path))) == 64
