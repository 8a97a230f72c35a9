"""The packaged ViT: names found through a graph made here; the real one against transformers."""

import json
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from goat_jax.errors import UserError
from goat_jax.files import sha256_of
from goat_jax.pretrained import dinov2_onnx as dino
from goat_jax.pretrained import pip_archives as packages
from goat_jax.pretrained.dinov2_onnx import hf_tensors
from goat_jax.pretrained.packaged_models import dino_folder
from kinds import expect

WIDTH, INNER = 4, 6
QUERY = "backbone.encoder.layer.0.attention.attention.query.bias"


def small_model():
    """One layer's query and output, a convolution, positions, and a decoder to leave out."""
    rng = np.random.default_rng(0)
    arrays = {
        "backbone.embeddings.patch_embeddings.projection.weight": rng.normal(size=(WIDTH, 3, 2, 2)),
        "onnx::Concat_1957": rng.normal(size=(1, 1, WIDTH)),
        "onnx::Reshape_1962": rng.normal(size=(1, 9, WIDTH)),
        "onnx::MatMul_1": rng.normal(size=(WIDTH, INNER)),
        "onnx::MatMul_2": rng.normal(size=(INNER, WIDTH)),
        QUERY: rng.normal(size=INNER),
        "backbone.encoder.layer.0.attention.output.dense.bias": rng.normal(size=WIDTH),
        "decoder.final_conv.bias": rng.normal(size=1),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["a"]),
        helper.make_node("Add", [QUERY, "a"], ["b"]),
        helper.make_node("MatMul", ["b", "onnx::MatMul_2"], ["c"]),
        helper.make_node(
            "Add", ["c", "backbone.encoder.layer.0.attention.output.dense.bias"], ["d"]
        ),
        helper.make_node("Add", ["d", "x"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", WIDTH]) for n in "xy"]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    ), arrays


EXPECTED = {
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.position_embeddings",
    "encoder.layer.0.attention.q_proj.weight",
    "encoder.layer.0.attention.q_proj.bias",
    "encoder.layer.0.attention.o_proj.weight",
    "encoder.layer.0.attention.o_proj.bias",
}


def test_kernels_are_named_by_their_biases():
    model, arrays = small_model()
    tensors = hf_tensors(model.graph)
    assert set(tensors) == EXPECTED
    query = tensors["encoder.layer.0.attention.q_proj.weight"]
    np.testing.assert_array_equal(query, arrays["onnx::MatMul_1"].T)
    np.testing.assert_array_equal(
        tensors["encoder.layer.0.attention.o_proj.weight"], arrays["onnx::MatMul_2"].T
    )
    positions = tensors["embeddings.position_embeddings"]
    assert positions.shape == (1, 10, WIDTH)
    np.testing.assert_array_equal(positions[:, :1], arrays["onnx::Concat_1957"])


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A stand-in of the right name and, by the table, of the right hash, in a cache folder."""
    package = packages.PACKAGES["dinov2-small"]
    path = tmp_path / package.filename
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(dino.MEMBER, small_model()[0].SerializeToString())
    pinned = packages.Package(
        package.requirement, package.filename, sha256_of(path), package.licence
    )
    monkeypatch.setitem(packages.PACKAGES, "dinov2-small", pinned)
    monkeypatch.setattr(dino, "TENSORS", len(EXPECTED))
    return path


def test_a_folder_is_written_once(tmp_path, wheel):
    from safetensors.numpy import load_file

    folder = dino_folder(tmp_path)
    assert {path.name for path in folder.iterdir()} == {*dino.FILES, packages.CHECKSUMS}
    assert set(load_file(folder / "model.safetensors")) == EXPECTED
    assert json.loads((folder / "config.json").read_text()) == dino.CONFIG
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, wheel.name])
    wheel.unlink()
    assert dino_folder(tmp_path) == folder


def test_another_network_leaves_nothing_behind(tmp_path, wheel, monkeypatch):
    monkeypatch.setattr(dino, "TENSORS", 222)
    with pytest.raises(UserError, match=r"6 tensors in .*, expected 222"):
        dino_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


@pytest.mark.slow
def test_the_real_one_is_what_transformers_loads():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.numpy import load_file

    try:
        folder = dino_folder()
    except UserError as error:
        if "could not fetch" not in str(error):
            raise
        pytest.skip(str(error))
    tensors = load_file(folder / "model.safetensors")
    assert sum(tensor.size for tensor in tensors.values()) == 22_056_192
    model = transformers.Dinov2Model(transformers.Dinov2Config.from_pretrained(folder)).eval()
    model.load_state_dict({n: torch.from_numpy(t) for n, t in tensors.items()}, strict=True)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 56, 56)).astype(np.float32)
    with torch.no_grad():
        found = model(torch.from_numpy(pixels)).last_hidden_state.numpy()
    expected = run_backbone(folder.parent / packages.PACKAGES["dinov2-small"].filename, pixels)
    assert found.shape == (2, 17, 384) and np.abs(expected).max() > 5
    np.testing.assert_allclose(found, expected, atol=1e-4)


def run_backbone(wheel, pixels):
    """Hidden states by the file itself, in onnx's own numpy interpreter."""
    from onnx.reference import ReferenceEvaluator

    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_from_string(archive.read(dino.MEMBER))
    end = next(n for n in reversed(model.graph.node) if "backbone/layernorm" in n.name).output[0]
    needed, kept = {end}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(reversed(kept))
    model.graph.output.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, None))
    return expect(list, ReferenceEvaluator(model).run(None, {"input_image": pixels}))[0]
