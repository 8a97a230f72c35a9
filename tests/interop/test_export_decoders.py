"""Every family of decoders out to transformers and PEFT and back: the same logits."""

import jax.numpy as jnp
import numpy as np
import pytest

import tiny_language
from goat_jax.adapters.context import EVAL
from goat_jax.cli.main import main
from goat_jax.config.files import load_config
from goat_jax.errors import UserError
from goat_jax.evaluation.model import load_eval_model
from goat_jax.evaluation.sampler import Sampling
from goat_jax.interop.export_run import export_run
from goat_jax.models.decoder.families import FAMILIES
from goat_jax.nn.dense import merge_model
from goat_jax.pretrained.safetensors import open_weights
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.trainer import begin
from trained import trained_elsewhere

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
transformers = pytest.importorskip("transformers")
write_decoder = pytest.importorskip("tiny_torch_decoders").write_decoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

CLOSE = 1e-5
AUTO = transformers.AutoModelForCausalLM


CONFIG = """
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.optim.optimizer import OptimizerConfig

def get_config(method="pissa", total_rank=4):
    return RunConfig(
        ModelConfig({model!r}),
        language_files({rows!r}, {rows!r}),
        AdapterConfig(
            method,
            total_rank=total_rank,
            target_modules=r".*(self_attn|mlp)\\.[^.]*proj",
            modules_to_save=(),
            dropout=0.0,
        ),
        OptimizerConfig(warmup_steps=0),
        TrainConfig(steps=2, batch_size=2, eval_batch_size=2, max_length=16),
        out={run!r},
    )
"""


def write_config(root):
    rows = root / "rows.jsonl"
    rows.write_text('{"prompt": "what is the sky ?", "completion": "blue"}\n' * 12)
    path = root / "config.py"
    places = dict(model=str(root / "model"), rows=str(rows), run=str(root / "run"))
    path.write_text(CONFIG.format(**places))
    return str(path)


def our_logits(folder, ids):
    run = restore_run(folder, None)
    model = merge_model(run.setup.graph, run.state.trainable, run.state.frozen(run.setup.base))
    return np.asarray(model(jnp.asarray(ids), ctx=EVAL))


def their_logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids)).logits.numpy()


def close(one, two):
    return np.abs(one - two).max() < CLOSE * np.abs(two).max()


IDS = np.random.default_rng(0).integers(4, len(tiny_language.WORDS), (3, 7)).astype(np.int32)


# CI runs a layout of kernels that is not Llama's. Llama's own is that of test_vocabulary.py, and
# the names of every family are read in tests/models/decoder.
IN_CI = ("phi3",)


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=() if name in IN_CI else pytest.mark.nightly) for name in FAMILIES],
)
def test_peft_and_merged_models_have_the_run_s_logits(model_type, tmp_path):
    base = write_decoder(tmp_path / "model", model_type)
    run = begin(load_config(write_config(tmp_path)), trained_elsewhere).folder
    ours = our_logits(run, IDS)
    export_run(run, "merged", tmp_path / "merged")
    stored = open_weights(tmp_path / "merged").entries
    assert {name: entry.shape for name, entry in stored.items()} == {
        name: entry.shape for name, entry in open_weights(tmp_path / "model").entries.items()
    }
    assert close(their_logits(AUTO.from_pretrained(tmp_path / "merged"), IDS), ours)
    assert not close(their_logits(base, IDS), ours)
    export_run(run, "peft", tmp_path / "peft")
    assert close(their_logits(peft.PeftModel.from_pretrained(base, tmp_path / "peft"), IDS), ours)


UNFUSED = [name for name in FAMILIES if name not in ("phi3", "glm", "glm4")]
"""Families whose layers have no adapters that transformers stores as one."""


@pytest.mark.nightly
@pytest.mark.parametrize("model_type", UNFUSED)
def test_routed_experts_generate_alike_in_pytorch(model_type, tmp_path):
    pytest.importorskip("goat_jax.torch")
    write_decoder(tmp_path / "model", model_type)
    config = load_config(write_config(tmp_path) + ":method=goat,total_rank=16")
    run = begin(config, trained_elsewhere).folder
    generator, text = load_eval_model(str(run)).generator(), []
    for step in generator.tokens(IDS.tolist(), Sampling(max_new_tokens=6)):
        text.append(step)
    ours = our_logits(run, IDS)
    for to, auto in (("peft", peft.AutoPeftModelForCausalLM), ("transformers", AUTO)):
        export_run(run, to, tmp_path / to)
        model = auto.from_pretrained(tmp_path / to, trust_remote_code=to == "transformers")
        assert close(their_logits(model, IDS), ours)
        greedy = dict(do_sample=False, max_new_tokens=6, pad_token_id=1)  # ours pads with the end
        theirs = model.generate(input_ids=torch.tensor(IDS), **greedy)[:, IDS.shape[1] :].numpy()
        assert (theirs == np.stack(text, 1)[:, : theirs.shape[1]]).all()


@pytest.mark.nightly
def test_routed_experts_on_parts_of_one_layer_are_refused(tmp_path):
    source = write_config(tmp_path) + ":method=goat,total_rank=16"
    write_decoder(tmp_path / "model", "phi3")
    run = begin(load_config(source), trained_elsewhere).folder
    with pytest.raises(
        UserError, match="q_proj is a part of one layer in transformers, where this"
    ):
        export_run(run, "peft", tmp_path / "peft")


FUSED = ["qkv_proj", "o_proj", "gate_up_proj"]


@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_peft_s_adapter_of_a_fused_layer_is_read_and_written(dora, tmp_path, capsys):
    base = write_decoder(tmp_path / "model", "phi3")
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=FUSED, use_dora=dora, rank_pattern={"gate_up_proj": 2}
    )
    model = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs = their_logits(model, IDS)
    model.save_pretrained(tmp_path / "peft")
    out = tmp_path / "imported"
    arguments = ["import", str(tmp_path / "peft"), "--config", write_config(tmp_path)]
    assert main([*arguments, "--out", str(out)]) == 0, capsys.readouterr().err
    assert close(our_logits(out, IDS), theirs)
    export_run(out, "peft", tmp_path / "again")
    plain = AUTO.from_pretrained(tmp_path / "model")
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "again")
    assert close(their_logits(again, IDS), theirs)
