"""Optional packages: each that is missing is named in one line with its extra."""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.cli.main import main
from goat_jax.cli.verbs.train import draw
from goat_jax.config.files import load_config
from goat_jax.data.pipeline.image_transforms import array_image
from goat_jax.data.pipeline.images import decode_image
from goat_jax.data.prepare.prepare import prepare
from goat_jax.data.sources.read import read_image_source, read_source
from goat_jax.errors import Notice, UserError
from goat_jax.extras import EXTRA_OF, import_extra
from goat_jax.hardware.topologies import find_topology
from goat_jax.nn.quantized_kernel import quantize
from goat_jax.plots import plot_training
from goat_jax.pretrained.dinov2_onnx import write_dino
from goat_jax.pretrained.gguf.file import read_gguf
from goat_jax.training.distributed.processes import records_of
from goat_jax.training.logging.writers import TRACKERS, TensorBoard
from kinds import present

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
RECORDS = [{"kind": "train", "step": step, "loss": 1.0, "learning_rate": 0.1} for step in (1, 2)]


def a_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(b"GGUF" + bytes(60))
    return path


def import_anew(name: str) -> None:
    """Imports a package as if it had not been imported before."""
    known = sys.modules.pop(name, None)
    try:
        importlib.import_module(name)
    finally:
        if known is not None:
            sys.modules[name] = known


USES = {
    "images_of_bytes": ("PIL", lambda folder: decode_image(b"GIF87", "row 1")),
    "images_of_arrays": ("PIL", lambda folder: array_image(np.zeros((2, 2), np.uint8))),
    "hub": ("datasets", lambda folder: read_source("hf:owner/set@train", "train")),
    "gguf": ("gguf", lambda folder: read_gguf(a_file(folder, "a.gguf"))),
    "plots": ("matplotlib", lambda folder: plot_training(RECORDS, folder / "a.png", title="a")),
    "onnx": ("onnx", lambda folder: write_dino(a_file(folder, "a.whl"), folder / "dino")),
    "parquet": ("pyarrow", lambda folder: read_source(str(a_file(folder, "a.parquet")), "train")),
    "quantization": ("qwix", lambda folder: quantize(jnp.ones((4, 4)), "int8")),
    "digits": ("sklearn", lambda folder: read_source("digits:train", "train")),
    "tensorboard": ("tensorboardX", TensorBoard),
    "tfds": ("tensorflow_datasets", lambda folder: read_source("tfds:glue/rte", "train", folder)),
    "tfds_images": (
        "tensorflow_datasets",
        lambda folder: read_image_source("tfds:dtd", "train", "image", folder),
    ),
    "plan_tpu": ("libtpu", lambda folder: find_topology("v5e:4x4")),
    "plan_gpu": ("jax_cuda12_plugin", lambda folder: find_topology("h100:8")),
    "torch": ("torch", lambda folder: import_anew("goat_jax.torch")),
    "peft": ("peft", lambda folder: import_anew("goat_jax.torch")),
    "lm_eval": ("lm_eval", lambda folder: import_anew("goat_jax.evaluation.lm_eval")),
    "prepare": ("tensorflow_datasets", lambda folder: prepare("dtd", folder)),
    **{
        name: (name, lambda folder, name=name: TRACKERS[name](folder, "goats", {}))
        for name in TRACKERS
    },
}
"""Name -> (an optional package, what uses it in a folder)."""


@pytest.fixture
def without(monkeypatch):
    """Makes a package look as if it were not installed."""

    def hide(package):
        loaded = [name for name in sys.modules if name.partition(".")[0] == package]
        for name in (package, *loaded):
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.parametrize("name", USES)
def test_a_missing_package_is_named_with_its_extra(name, tmp_path, without):
    package, use = USES[name]
    without(package)
    line = rf"needs {package}: pip install 'goat-jax\[{EXTRA_OF[package]}\]'$"
    with pytest.raises(UserError, match=line) as caught:
        use(tmp_path)
    assert "\n" not in str(caught.value)


def test_every_optional_package_is_tried_above():
    assert {package for package, _ in USES.values()} == set(EXTRA_OF)


def test_the_extras_of_the_messages_exist():
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert set(EXTRA_OF.values()) <= set(extras)
    (everything,) = extras["all"]
    listed = present(re.fullmatch(r"goat-jax\[(.*)\]", everything))[1].split(",")
    other = {
        "hub",
        "lm-eval",
        "plan-gpu",
        "torch",
        "tpu",
        *TRACKERS,
    }  # need a network, a device or a choice
    assert listed == sorted(set(EXTRA_OF.values()) - other)


def test_another_error_of_an_optional_package_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "gguf.py").write_text("import nothing_of_this_name")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        import_extra("gguf", "reading GGUF")


def test_a_run_goes_without_tensorboard_files(tiny, without):
    without("tensorboardX")
    with pytest.warns(Notice, match=r"no TensorBoard files: .*'goat-jax\[tensorboard\]'"):
        records_of(load_config(str(tiny / "config.py")))


def test_a_run_goes_without_its_figures(tmp_path, without):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    without("matplotlib")
    with pytest.warns(Notice, match=r"no training.png and expert_load.png: .*'goat-jax\[plots\]'"):
        draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_command_line_ends_with_one_line_and_2(capsys, without):
    without("tensorflow_datasets")
    assert main(["data", "prepare", "dtd"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("needs tensorflow_datasets: pip install 'goat-jax[data]'")
