"""Adapters on table and output, and trained tokens, in real PEFT and transformers and back."""

import json

import numpy as np
import pytest

from goat_jax.cli.verbs.import_adapter import import_adapter
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.errors import UserError
from goat_jax.interop.export_run import export_run
from goat_jax.nn.dense import merge_model
from goat_jax.training.abstract_run import abstract_run
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.trainer import begin
from tiny_language import WORDS, write_model
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
KNOWN = len(WORDS)
IDS = np.array([[3, 4, KNOWN, KNOWN + 1], [5, KNOWN, 2, 7]], np.int32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("vocabulary")
    write_model(root / "separate")
    folder = write_model(root / "tied", tie_embeddings=True)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    row = {"prompt": "the sky is <think>", "completion": "blue </think>"}
    (root / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return root


def run_config(root, base, model, adapter, out):
    rows = str(root / "rows.jsonl")
    return RunConfig(
        ModelConfig(str(root / base), **model),
        language_files(rows, rows),
        AdapterConfig(modules_to_save=(), **adapter),
        train=TrainConfig(steps=200, batch_size=1, max_length=16, eval_batch_size=1),
        out=str(out),
    )


def our_logits(folder, ids):
    run = restore_run(folder, None)
    model = merge_model(run.setup.graph, run.state.trainable, run.state.frozen(run.setup.base))
    return np.asarray(model(ids))


def torch_logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids.astype(np.int64))).logits.numpy()


def goes_both_ways(root, base, model, adapter, ids, tmp_path):
    """Compares a run's logits with those of its exports and of its import from PEFT."""
    config = run_config(root, base, model, adapter, tmp_path / "run")
    run = begin(config, trained_elsewhere).folder
    expected = our_logits(run, ids)
    export_run(run, "peft", tmp_path / "peft")
    pretrained = transformers.AutoModelForCausalLM.from_pretrained(root / base)
    if model:
        pretrained.resize_token_embeddings(KNOWN + 2)
    assert np.abs(torch_logits(pretrained, ids) - expected).max() > 0.1
    theirs = peft.PeftModel.from_pretrained(pretrained, tmp_path / "peft")
    assert np.abs(torch_logits(theirs, ids) - expected).max() < CLOSE
    export_run(run, "merged", tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert np.abs(torch_logits(merged, ids) - expected).max() < CLOSE
    rows = str(root / "rows.jsonl")
    (tmp_path / "config.py").write_text(
        "from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig\n"
        "from goat_jax.data.tasks.registry import language_files\n\n\n"
        "def get_config():\n"
        f"    rows, model = {rows!r}, ModelConfig({str(root / base)!r})\n"
        "    return RunConfig(model, language_files(rows, rows),\n"
        "        AdapterConfig('lora', modules_to_save=()),\n"
        "        train=TrainConfig(steps=200, batch_size=1, max_length=16, eval_batch_size=1))\n"
    )
    again = tmp_path / "again"
    import_adapter(tmp_path / "peft", str(tmp_path / "config.py"), ["--out", str(again)])
    assert np.abs(our_logits(again, ids) - expected).max() < CLOSE
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "method"),
    [
        ("tied", "pissa"),
        pytest.param("tied", "dora", marks=pytest.mark.nightly),
        pytest.param("separate", "lora", marks=pytest.mark.nightly),
    ],
)
def test_adapters_on_the_table_and_the_output(base, method, root, tmp_path):
    targets = ("embed_tokens", "lm_head", "q_proj")
    adapter = {"method": method, "target_modules": targets, "total_rank": 2, "dropout": 0.0}
    goes_both_ways(root, base, {}, adapter, IDS % KNOWN, tmp_path)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == set(targets)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["tied", pytest.param("separate", marks=pytest.mark.nightly)])
def test_new_tokens_are_trained_alone(base, root, tmp_path):
    model = {"add_tokens": ("<think>,</think>",)}
    tokens = {"target_modules": ("q_proj",), "trainable_token_indices": (2,)}
    adapter = {"method": "lora", "total_rank": 2, "dropout": 0.0, **tokens}
    run = goes_both_ways(root, base, model, adapter, IDS, tmp_path)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    ids = [2, KNOWN, KNOWN + 1]
    both = {"embed_tokens": ids} if base == "tied" else {"embed_tokens": ids, "lm_head": ids}
    assert config["trainable_token_indices"] == both
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("sky <think>")["input_ids"][1] == KNOWN
    # The start is the mean, and a run that is only planned trains as many numbers.
    setup = restore_run(run, None).setup
    table = np.asarray(setup.base["embeddings"]["table"])
    start = setup.state.trainable["head"]["embeddings"]["rows"]["values"]
    np.testing.assert_allclose(start[1], table[:KNOWN].mean(0), rtol=1e-6, atol=1e-7)
    report = setup.inject_report
    planned = abstract_run(run_config(root, base, model, adapter, tmp_path)).inject_report
    assert planned.trained_parameters == report.trained_parameters
    assert report.head_parameters == len(both) * 3 * 32


def test_bad_tokens_are_refused(root, tmp_path):
    lora = {"method": "lora", "target_modules": ("embed_tokens",), "total_rank": 2}
    both = run_config(root, "tied", {"add_tokens": ("<a>",)}, lora, tmp_path / "run")
    with pytest.raises(UserError, match=r"model.embed_tokens would have an adapter and trained"):
        abstract_run(both)
    far = {"method": "lora", "trainable_token_indices": (99,)}
    with pytest.raises(UserError, match="has 99, and the model has 18 tokens: name new ones with"):
        abstract_run(run_config(root, "tied", {}, far, tmp_path / "run"))
    with pytest.raises(UserError, match=r"model.add_tokens has '': give each token once"):
        ModelConfig("m", add_tokens=("<a>,",))
    table = {"method": "neat", "target_modules": ("embed_tokens",), "total_rank": 2}
    with pytest.raises(UserError, match="KernelNetwork multiplies x, a table has an index alone"):
        abstract_run(run_config(root, "tied", {}, table, tmp_path / "run"))
