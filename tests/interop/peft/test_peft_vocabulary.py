"""PEFT folders with the vocabulary in them: adapted, trained in full, resized; both ways."""

import json

import numpy as np
import pytest

from goat_jax.cli.verbs.import_adapter import import_adapter
from goat_jax.errors import UserError
from goat_jax.interop.export_run import export_run
from goat_jax.nn.dense import merge_model
from goat_jax.training.checkpoints.restore import restore_run
from tiny_language import WORDS, write_model

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # PEFT's advice on tied embeddings and on the size of the file.
    pytest.mark.filterwarnings("ignore:Model (with|has) .tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers:UserWarning"),
]

CLOSE = 1e-5
KNOWN = len(WORDS)
IDS = np.array([[3, 4, 5, 6], [7, 8, 9, 2]], np.int32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("peft")
    write_model(root / "separate")
    folder = write_model(root / "tied", tie_embeddings=True)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    rows = root / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "the sky is", "completion": "blue"}) + "\n")
    for base in ("separate", "tied"):
        (root / f"{base}.py").write_text(
            "from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig\n"
            "from goat_jax.data.tasks.registry import language_files\n\n\n"
            "def get_config():\n"
            f"    rows, model = {str(rows)!r}, ModelConfig({str(root / base)!r})\n"
            "    return RunConfig(model, language_files(rows, rows),\n"
            "        AdapterConfig('lora', modules_to_save=()),\n"
            "        train=TrainConfig(steps=9, batch_size=1, max_length=16, eval_batch_size=1))\n"
        )
    return root


def torch_logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids.astype(np.int64))).logits.numpy()


def pretrained(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def saved(model, folder, ids, *, targets=("q_proj",), save=None, **settings):
    """Saves an adapter of PEFT whose trained numbers have all moved; returns its logits."""
    settings |= {"target_modules": list(targets)}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=3, **settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    adapted.save_pretrained(folder, **({} if save is None else {"save_embedding_layers": save}))
    return torch_logits(adapted, ids)


def imported(root, base, folder, out):
    import_adapter(folder, str(root / f"{base}.py"), ["--out", str(out)])
    return out


def our_logits(run, ids):
    restored = restore_run(run, None)
    frozen = restored.state.frozen(restored.setup.base)
    model = merge_model(restored.setup.graph, restored.state.trainable, frozen)
    return np.asarray(model(ids))


BOTH = ["embed_tokens", "lm_head"]
CASES = {
    "adapters": ("separate", {"targets": (*BOTH, "q_proj")}),
    "adapter of a tied table": ("tied", {"targets": ("embed_tokens", "q_proj"), "save": True}),
    "both trained": ("tied", {"modules_to_save": BOTH}),
    "output trained": ("separate", {"modules_to_save": ["lm_head"]}),
    "tokens, both saved": ("separate", {"trainable_token_indices": [2, 5], "save": True}),
    "nothing trained, both saved": ("separate", {"save": True}),
}
IN_CI = ("adapters",)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in IN_CI else pytest.mark.nightly) for c in CASES]
)
def test_peft_s_folder_and_ours_compute_the_same(case, root, tmp_path):
    base, settings = CASES[case]
    expected = saved(pretrained(root / base), tmp_path / "peft", IDS, **settings)
    close = CLOSE * np.abs(expected).max()
    run = imported(root, base, tmp_path / "peft", tmp_path / "run")
    assert np.abs(our_logits(run, IDS) - expected).max() < close
    export_run(run, "peft", tmp_path / "again")
    again = peft.PeftModel.from_pretrained(pretrained(root / base), tmp_path / "again")
    assert np.abs(torch_logits(again, IDS) - expected).max() < close
    export_run(run, "merged", tmp_path / "merged")
    assert np.abs(torch_logits(pretrained(tmp_path / "merged"), IDS) - expected).max() < close


def grown(root):
    """A model with two more tokens, and its tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "separate")
    tokenizer.add_tokens(["<a>", "<b>"])
    model = pretrained(root / "separate")
    model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


@pytest.mark.nightly
def test_a_vocabulary_that_was_resized_and_trained_is_imported(root, tmp_path):
    model, tokenizer = grown(root)
    ids = np.array([[3, KNOWN, 4, KNOWN + 1]], np.int32)
    expected = saved(model, tmp_path / "peft", ids, modules_to_save=BOTH)
    tokenizer.save_pretrained(tmp_path / "peft")
    run = imported(root, "separate", tmp_path / "peft", tmp_path / "run")
    assert np.abs(our_logits(run, ids) - expected).max() < CLOSE * np.abs(expected).max()


def test_frozen_vectors_that_the_base_does_not_have_are_refused(root, tmp_path):
    targets = ("embed_tokens", "q_proj")
    larger, tokenizer = grown(root)
    saved(larger, tmp_path / "larger", IDS, targets=targets)
    tokenizer.save_pretrained(tmp_path / "larger")
    with pytest.raises(UserError, match=r"embed_tokens was .20, 32. and is .18, 32. here: merge"):
        imported(root, "separate", tmp_path / "larger", tmp_path / "run")
    other = pretrained(root / "separate")
    with torch.no_grad():
        other.model.embed_tokens.weight[3, 0] += 0.1
    saved(other, tmp_path / "other", IDS, targets=targets)
    with pytest.raises(UserError, match=r"other frozen values of model.embed_tokens.weight than"):
        imported(root, "separate", tmp_path / "other", tmp_path / "run")
