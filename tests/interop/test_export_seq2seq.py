"""Exports of a T5 run, reloaded with transformers and PEFT: the same logits."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from goat_jax.adapters.context import EVAL
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.interop.export_run import export_run
from goat_jax.interop.folders import ADAPTER_CONFIG
from goat_jax.nn.dense import merge_model
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.trainer import begin
from trained import trained_elsewhere

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
transformers = pytest.importorskip("transformers")
random_torch = pytest.importorskip("random_torch")

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

PROMPT, ANSWER = [5, 6, 7, 8, 1], [0, 9, 10, 11]


def write_model(folder):
    sizes = dict(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    config = transformers.T5Config(
        **sizes,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )

    def make():
        model = transformers.T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        return model

    model = random_torch.randomized(make)
    model.save_pretrained(folder)
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(3, 40))]
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)


def test_merged_and_peft_models_have_the_run_s_logits(tmp_path):
    write_model(tmp_path / "model")
    row = json.dumps({"prompt": "w5 w6 ", "completion": "w7"}) + "\n"
    (tmp_path / "rows.jsonl").write_text(row * 4)
    rows = str(tmp_path / "rows.jsonl")
    config = RunConfig(
        ModelConfig(str(tmp_path / "model")),
        language_files(rows, rows),
        AdapterConfig("goat", total_rank=8, modules_to_save=(), dropout=0.0),
        OptimizerConfig(warmup_steps=0),
        TrainConfig(steps=2, batch_size=2, eval_batch_size=2, max_length=16),
        out=str(tmp_path / "goat"),
    )
    begin(config, trained_elsewhere)  # GOAT starts from every linear layer's SVD
    plain = AdapterConfig("pissa", total_rank=4, modules_to_save=(), dropout=0.0)
    config = dataclasses.replace(config, adapter=plain, out=str(tmp_path / "run"))
    run = begin(config, trained_elsewhere).folder
    trained = restore_run(run, None)
    state, setup = trained.state, trained.setup
    model = merge_model(setup.graph, state.trainable, state.frozen(setup.base))
    ids = jnp.array([[*PROMPT, *ANSWER]], jnp.int32)
    segments = jnp.array([[1] * len(PROMPT) + [2] * len(ANSWER)])
    ours = np.asarray(model(ids, segments=segments, ctx=EVAL))[0, len(PROMPT) :]

    def logits(model):
        inputs = {"input_ids": [PROMPT], "decoder_input_ids": [ANSWER]}
        inputs = {name: torch.tensor(value) for name, value in inputs.items()}
        with torch.no_grad():
            return model.eval()(**inputs).logits[0].numpy()

    export_run(run, "merged", tmp_path / "merged")
    auto = transformers.AutoModelForSeq2SeqLM
    merged, report = auto.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values()), report
    largest = np.abs(ours).max()
    assert np.abs(logits(merged) - ours).max() < 1e-5 * largest
    base = auto.from_pretrained(tmp_path / "model")
    assert np.abs(logits(base) - ours).max() > 1e-2 * largest
    export_run(run, "peft", tmp_path / "peft")
    settings = json.loads((tmp_path / "peft" / ADAPTER_CONFIG).read_text())
    assert settings["task_type"] == "SEQ_2_SEQ_LM"
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "peft")
    assert np.abs(logits(adapted) - ours).max() < 1e-5 * largest
