"""Model cards: true, with lines that run; merged weights in the pretrained dtype."""

import dataclasses
import json
import re
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from goat_jax.errors import UserError
from goat_jax.interop.export_run import export_run
from goat_jax.interop.folders import ADAPTER_CONFIG
from goat_jax.nn.dense import merge_model
from goat_jax.pretrained import packaged_models
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.trainer import begin
from kinds import present
from trained import trained_elsewhere

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

REPOSITORY = packaged_models.ORIGINS["package:minilm"]
IDS = np.random.default_rng(0).integers(4, 21, (4, 7)).astype(np.int32)
MASK = np.ones_like(IDS)
MASK[1, 4:] = MASK[2, 2:] = 0


@pytest.fixture(scope="module")
def packaged(tiny):
    """The tiny model, in the place of the package's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(packaged_models.PACKAGED_MODELS, "minilm", lambda: tiny / "model")
        yield "package:minilm"


@pytest.fixture(scope="module")
def run(two_modules, packaged, tmp_path_factory):
    """A run on a packaged model with mean pooling, as the demo, of somebody's own rows."""
    own = dataclasses.replace(
        two_modules,
        model=dataclasses.replace(two_modules.model, path=packaged),
        adapter=dataclasses.replace(two_modules.adapter, method="pissa", total_rank=4, dropout=0.0),
        task=dataclasses.replace(two_modules.task, name="letters"),
        out=str(tmp_path_factory.mktemp("card") / "run"),
    )
    return begin(own, trained_elsewhere, "goat-jax train --config demo.py").folder


def our_logits(folder):
    opened = restore_run(folder, None)
    base = opened.state.frozen(opened.setup.base)
    model = merge_model(opened.setup.graph, opened.state.trainable, base)
    return np.asarray(model(IDS, MASK, np.zeros_like(IDS)))


def lines_of(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    return present(re.search(r"## Use\n\n```python\n(.*?)\n```", card, re.DOTALL))[1]


def run_lines(folder, monkeypatch):
    """Runs the lines of a card beside the folder, without the network; returns their names."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {}
    exec(lines_of(folder), found)
    found["model"].eval()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("to", [pytest.param("peft", marks=pytest.mark.slow), "merged"])
def test_the_lines_on_the_card_give_the_run_s_logits(to, run, tmp_path, monkeypatch):
    export_run(run, to, tmp_path / "out")
    found = run_lines(tmp_path / "out", monkeypatch)
    ids, mask = (torch.tensor(array.astype(np.int64)) for array in (IDS, MASK))
    with torch.no_grad():
        logits = found["logits"](input_ids=ids, attention_mask=mask).numpy()
    np.testing.assert_allclose(logits, our_logits(run), atol=1e-5)
    lines = lines_of(tmp_path / "out")
    assert len(lines[lines.index("    inner") :].splitlines()) == 6


@pytest.mark.slow
@pytest.mark.parametrize(("to", "state"), [("peft", "is not merged"), ("merged", "is merged")])
def test_what_the_card_says_is_the_run_s(to, state, run, tmp_path):
    made = export_run(run, to, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    saved = json.loads((run / "run.json").read_text())
    head: Any = ModelCard(card).data
    assert head.base_model == REPOSITORY and "`package:minilm`" in card
    assert head.base_model_relation == {"peft": "adapter", "merged": "finetune"}[to]
    assert head.pipeline_tag == "text-classification" and "pissa" in head.tags
    assert head.library_name == {"peft": "peft", "merged": "transformers"}[to]
    listed = {result.metric_type: result.metric_value for result in head.eval_results}
    assert listed == pytest.approx(made.scores["run"])
    assert "trained on `letters`" in card and f"The adapter {state}" in card
    for library, version in saved["versions"].items():
        assert re.search(rf"\| `{library}` +\| {re.escape(version)} +\|", card), library
    for name, value in made.scores["run"].items():
        cell = re.search(rf"\| {name} +\| +([\d.]+) +\|", card)
        assert float(present(cell)[1]) == pytest.approx(value, rel=1e-3), name
    assert "goat-jax train --config demo.py" in card
    if to == "peft":
        config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
        assert config["base_model_name_or_path"] == REPOSITORY


@pytest.fixture(scope="module")
def narrow(two_modules, tiny, tmp_path_factory):
    """A run in float32 on weights that are stored in bfloat16."""
    root = tmp_path_factory.mktemp("narrow")
    shutil.copytree(tiny / "model", root / "model")
    path = root / "model" / "model.safetensors"
    stored = {name: tensor.astype(jnp.bfloat16) for name, tensor in load_file(path).items()}
    save_file(stored, path, metadata={"format": "pt"})
    own = dataclasses.replace(
        two_modules,
        model=dataclasses.replace(two_modules.model, path=str(root / "model"), options={}),
        adapter=dataclasses.replace(two_modules.adapter, method="lora", total_rank=4, dropout=0.0),
        out=str(root / "run"),
    )
    return begin(own, trained_elsewhere).folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "dtype"), [(None, "bfloat16"), ("float32", "float32"), ("float16", "float16")]
)
def test_merged_weights_have_the_dtype_of_the_pretrained_ones(asked, dtype, narrow, tmp_path):
    export_run(narrow, "merged", tmp_path / "out", dtype=asked)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {dtype}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.slow
def test_a_dtype_is_for_merged_weights_and_known(narrow, tmp_path):
    with pytest.raises(UserError, match="--dtype is for --to merged"):
        export_run(narrow, "peft", tmp_path / "out", dtype="float32")
    with pytest.raises(UserError, match="--dtype 'int8' is not known"):
        export_run(narrow, "merged", tmp_path / "out", dtype="int8")
    assert not list(tmp_path.iterdir())
