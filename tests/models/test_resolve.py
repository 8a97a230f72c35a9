"""Sources of models; their parts go straight to their devices."""

import errno
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from goat_jax.errors import Notice, UserError
from goat_jax.models import load_parameters as fill
from goat_jax.models.encoder.model import Encoder
from goat_jax.models.load import load_model
from goat_jax.models.registry import architecture_of
from goat_jax.nn.dense import Dense
from goat_jax.pretrained.resolve import find_model, open_checkpoint
from kinds import expect


def test_a_folder_here_goes_before_the_hub(tmp_path, monkeypatch):
    (tmp_path / "roberta-large").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    assert find_model("roberta-large") == Path("roberta-large")


def test_a_name_that_is_no_folder_is_asked_of_the_hub(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_model("meta-llama/Llama-2-7b-hf") == tmp_path
    patterns = asked["meta-llama/Llama-2-7b-hf"]
    assert "*.safetensors" in patterns
    assert not any("bin" in p or "py" in p for p in patterns)  # no pickles, no code


def test_a_hub_that_does_not_answer_gives_one_line(tmp_path, monkeypatch):
    def snapshot_download(*args, **options):
        raise OSError("no route to host\nand a long story")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError) as caught:
        find_model("roberta-large")
    assert "\n" not in str(caught.value)
    assert "is not a folder here" in str(caught.value) and "no route to host" in str(caught.value)


def test_a_full_disk_of_the_hub_s_cache_costs_a_warning(tmp_path, monkeypatch):
    def snapshot_download(name, allow_patterns, cache_dir=None):
        if cache_dir is None:
            raise OSError(errno.ENOSPC, "No space left on device", "blobs")
        return str(cache_dir)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.warns(Notice, match=r"cannot use the cache .* \(No space left"):
        assert find_model("roberta-large").parent.is_dir()


@pytest.mark.parametrize("path", ["./nowhere/model", "/nowhere/model", "a/b/c", "model.gguf/x/y"])
def test_paths_are_never_taken_for_hub_names(path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    with pytest.raises(UserError, match="is not a folder here"):
        open_checkpoint(find_model(path))


def test_sharded_loading_gives_the_same_arrays_part_by_part(save_torch, monkeypatch):
    """Every device's part is read on its own, and no read is larger than that part."""
    folder = save_torch("bert").folder
    whole = load_model(folder, key=jax.random.key(0)).model
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    reads = []
    read = fill._read

    def counted(*args):
        part = read(*args)
        reads.append(part.shape)
        return part

    monkeypatch.setattr(fill, "_read", counted)
    loaded = load_model(
        folder,
        key=jax.random.key(0),
        sharding=lambda site, name: NamedSharding(
            mesh, PartitionSpec(*([None] * (np.ndim(getattr(site.module, name)) - 1)), "data")
        ),
    )
    assert reads
    kernel = expect(Encoder, loaded.model).layers.runs[0].query.kernel[...]
    assert isinstance(kernel.sharding, NamedSharding)
    ours = jax.tree.leaves(jax.tree.map(np.asarray, _state(loaded.model)))
    theirs = jax.tree.leaves(jax.tree.map(np.asarray, _state(whole)))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def _state(model):
    return nnx.to_pure_dict(nnx.state(model))


def test_a_part_of_a_stacked_kernel_is_that_part_of_the_whole(save_torch):
    folder = save_torch("bert").folder
    _, weights = open_checkpoint(folder)
    hf, _ = open_checkpoint(folder)
    architecture = architecture_of(hf, folder)
    model = nnx.eval_shape(lambda: architecture.build(architecture.config(hf), rngs=nnx.Rngs(0)))
    slot = next(
        s
        for s in (fill._slot(*p) for p in fill.parameters(model))
        if isinstance(s.ref.module, Dense) and s.ref.axes and s.parameter == "kernel"
    )
    stored = {name: name for name in weights}
    full = fill._read(slot, stored, weights, np.float32, (slice(None),) * 3)
    index = (slice(1, 2), slice(0, 8), slice(4, 20))
    part = fill._read(slot, stored, weights, np.float32, index)
    assert part.shape == (1, 8, 16)
    np.testing.assert_array_equal(part, full[index])
