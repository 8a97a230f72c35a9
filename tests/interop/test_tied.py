"""Tied embeddings, exported to PEFT and imported from it: logits as transformers has them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from goat_jax.cli.verbs.import_adapter import import_adapter
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.interop.export_run import export_run
from goat_jax.nn.dense import merge_model
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.trainer import begin
from tiny_language import write_model
from trained import trained_elsewhere

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # PEFT's advice on tied embeddings; its results with this setting are compared.
    pytest.mark.filterwarnings("ignore:Model (with|has) .tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie.*:UserWarning"),
]

CLOSE = 1e-5
IDS = np.arange(3, 15).reshape(3, 4).astype(np.int32)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A folder with a tied model/, rows and config.py."""
    root = tmp_path_factory.mktemp("tied")
    folder = write_model(root / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    (root / "rows.jsonl").write_text(
        json.dumps({"prompt": "the sky is", "completion": "blue"}) + "\n"
    )
    rows = str(root / "rows.jsonl")
    (root / "config.py").write_text(
        "from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig\n"
        "from goat_jax.data.tasks.registry import language_files\n\n\n"
        "def get_config():\n"
        f"    return RunConfig(ModelConfig({str(folder)!r}), language_files({rows!r}, {rows!r}),\n"
        "        AdapterConfig('lora', modules_to_save=()),\n"
        "        train=TrainConfig(steps=200, batch_size=1, max_length=16, eval_batch_size=1))\n"
    )
    return root


def our_logits(folder):
    run = restore_run(folder, None)
    model = merge_model(run.setup.graph, run.state.trainable, run.state.frozen(run.setup.base))
    return np.asarray(model(IDS))


def torch_logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(IDS.astype(np.int64))).logits.numpy()


def torch_base(root):
    return transformers.AutoModelForCausalLM.from_pretrained(root / "model")


def trained_run(root, out):
    """A run on the tied model whose embeddings were trained in full, every number moved."""
    rows = str(root / "rows.jsonl")
    config = RunConfig(
        ModelConfig(str(root / "model")),
        language_files(rows, rows),
        AdapterConfig("lora", modules_to_save=("embed_tokens",), total_rank=2, dropout=0.0),
        train=TrainConfig(steps=200, batch_size=1, max_length=16, eval_batch_size=1),
        out=str(out),
    )
    return begin(config, trained_elsewhere).folder


@pytest.mark.slow
def test_trained_embeddings_of_a_tied_model_are_exact_in_peft_and_come_back_tied(tied, tmp_path):
    run = trained_run(tied, tmp_path / "run")
    expected = our_logits(run)
    export_run(run, "peft", tmp_path / "peft")
    base = torch_base(tied)
    assert np.abs(torch_logits(base) - expected).max() > 0.1
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft")
    assert np.abs(torch_logits(model) - expected).max() < CLOSE
    import_adapter(tmp_path / "peft", str(tied / "config.py"), ["--out", str(tmp_path / "again")])
    assert np.abs(our_logits(tmp_path / "again") - expected).max() < CLOSE
    assert restore_run(tmp_path / "again", None).config.model.options == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "kept_tied"),
    [
        (["embed_tokens"], False),
        # One of the twins, both of them, and the pair kept equal: the last two hold both tensors.
        pytest.param(["lm_head"], False, marks=(pytest.mark.slow, pytest.mark.nightly)),
        pytest.param(["embed_tokens", "lm_head"], False, marks=pytest.mark.slow),
        pytest.param(["embed_tokens"], True, marks=(pytest.mark.slow, pytest.mark.nightly)),
    ],
)
def test_peft_s_modules_to_save_on_a_tied_model(saved, kept_tied, tied, tmp_path):
    """PEFT trains a copy, so that input and output differ; merged, they are two tensors."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=saved, ensure_weight_tying=kept_tied
    )
    model = peft.get_peft_model(torch_base(tied), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    expected = torch_logits(model)
    model.save_pretrained(tmp_path / "peft")
    import_adapter(tmp_path / "peft", str(tied / "config.py"), ["--out", str(tmp_path / "run")])
    assert np.abs(our_logits(tmp_path / "run") - expected).max() < CLOSE
    export_run(tmp_path / "run", "merged", tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert np.abs(torch_logits(merged) - expected).max() < CLOSE
    export_run(tmp_path / "run", "peft", tmp_path / "out")
    again = peft.PeftModel.from_pretrained(torch_base(tied), tmp_path / "out")
    assert np.abs(torch_logits(again) - expected).max() < CLOSE
