"""Weights that are not finite are named, with their file, before anything is computed from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from goat_jax.errors import UserError
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.models.load import load_model
from goat_jax.typing import DTypeLike
from hugging_face import write_weights

NAME = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.fixture
def folder(tmp_path):
    config = tiny_config(num_layers=2)
    sizes = {"max_position_embeddings": 40, "type_vocab_size": 2}
    write_weights(tmp_path / "model", Encoder(config, rngs=nnx.Rngs(0)), "bert", **sizes)
    return tmp_path / "model"


def spoil(folder, value, name=NAME, dtype: DTypeLike = np.float32):
    path = folder / "model.safetensors"
    tensors = {key: tensor.astype(dtype) for key, tensor in load_file(path).items()}
    tensors[name][-1, ..., -1] = value
    save_file(tensors, path)
    return path


def error(folder, **options):
    with pytest.raises(UserError) as caught:
        load_model(folder, key=jax.random.key(0), **options)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16], ids=["32", "16", "b16"])
@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (-np.inf, "infinity")])
def test_a_tensor_that_is_not_finite_is_named(folder, value, kind, dtype):
    path = spoil(folder, value, dtype=dtype)
    assert error(folder, dtype=jnp.bfloat16) == (
        f"{path}: {NAME} has 1 of 1,024 values that are not finite ({kind}): fetch it again, or "
        "use other weights"
    )


@pytest.mark.parametrize(
    "name", ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.weight"]
)
def test_every_table_and_kernel_is_looked_at(folder, name):
    spoil(folder, np.nan, name)
    assert name in error(folder)


def test_a_number_too_large_for_the_dtype(folder):
    spoil(folder, 1e300, dtype=np.float64)
    assert f"{NAME} has 1 of 1,024 values that are not finite (infinity)" in error(folder)


def test_parts_of_a_tensor_on_a_mesh(folder):
    spoil(folder, np.nan)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    where = NamedSharding(mesh, PartitionSpec())
    assert NAME in error(folder, sharding=lambda site, parameter: where)


def test_a_tensor_that_nothing_reads_may_hold_anything(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"cls.predictions.bias": np.full(3, np.nan, np.float32)}, path)
    load_model(folder, key=jax.random.key(0))
