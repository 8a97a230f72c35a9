"""The programs of docs/tunix_maxtext.md, with the models that these packages ship.

Skipped where a package is missing: `.ci/integrations` installs them.
"""

import ast
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from goat_jax import Factor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tunix_maxtext.md"
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", text, flags=re.S)
    for title, text in re.findall(
        r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), flags=re.S | re.M
    )
}

# Warnings of other packages are theirs.
pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def usual_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(title, names):
    for program in SECTIONS[title]:
        exec(program.replace("/tmp/", f"{Path.cwd()}/"), names)


def frozen(model):
    return nnx.to_flat_state(nnx.state(model, nnx.All(nnx.Param, nnx.Not(Factor))))


def test_tunix_trains_and_saves_the_adapters_alone_also_on_kernels_quantized_by_qwix(
    tmp_path, monkeypatch
):
    pytest.importorskip("tunix", reason="needs google-tunix")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    run("tunix", names)
    assert len(names["report"].modules) == 7
    assert names["losses"][-1] < names["losses"][0] - 0.1
    # Adapting it again gives the kernels that training has to leave as they are.
    model = names["create_dummy_model"](names["Llama3"], names["config"], scale=0.2)
    spec = names["method_spec"]("goat", total_rank=8)
    layers = {names["Einsum"]: names["EINSUM"]}
    names["adapt_nnx"](model, spec, r"layers\..*_proj", key=jax.random.key(1), layers=layers)
    for (path, before), (_, after) in zip(frozen(model), frozen(names["model"]), strict=True):
        np.testing.assert_array_equal(before[...], after[...], err_msg=str(path))
    saved = json.loads((tmp_path / "tunix-goat/5/model_params/_METADATA").read_text())
    saved = {ast.literal_eval(path)[-2] for path in saved["tree_metadata"]}
    assert saved == {"a", "b", "router"}

    run("qwix", names)
    kernel = names["quantized"].layers[0].attn.q_proj.w
    assert kernel.array.qvalue.dtype == np.int8
    assert 0 < names["error"] < 0.05
    assert names["quantized_losses"][-1] < names["quantized_losses"][0] - 0.1


def test_maxtext_scans_adapted_layers(tmp_path, monkeypatch):
    pytest.importorskip("maxtext", reason="needs maxtext (of Python 3.12 on)")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    run("MaxText", names)
    assert len(names["report"].modules) == 7
    assert names["model"].decoder.layers.mlp.wo.adapter.a[...].shape[0] == 2
    assert names["losses"][-1] < names["losses"][0] - 0.1
    assert min(names["balances"]) > 0
