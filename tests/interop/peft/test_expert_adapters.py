"""LoRA on the experts of mixtures: PEFT's target_parameters, both ways."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from goat_jax.cli.verbs.import_adapter import import_adapter
from goat_jax.interop.export_run import export_run
from goat_jax.interop.import_adapter import Imported
from goat_jax.interop.low_rank import LowRank
from goat_jax.interop.peft.expert_adapters import expert_tensors, join_experts, split_experts
from goat_jax.models.expert_tensors import ExpertTensor
from goat_jax.nn.dense import merge_model
from goat_jax.training.checkpoints.restore import restore_run
from tiny_torch_decoders import write_decoder

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # Of parameters PEFT says so wrongly: it looks for them among the modules, and uses them.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
]

CLOSE = 1e-5
IDS = np.arange(3, 15).reshape(3, 4).astype(np.int32)
GATE_AND_UP = ExpertTensor("e.gate_up", ("e.{}.gate", "e.{}.up"), interleaved=True)
DOWN = ExpertTensor("e.down", ("e.{}.down",))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(IDS.astype(np.int64))).logits.numpy()


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["gpt_oss", "mixtral", "qwen3_moe"])
def test_peft_s_target_parameters_come_and_go_to_the_bit(family, tmp_path):
    base = write_decoder(tmp_path / "base", family)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        rank_pattern={"mlp.experts.down_proj": 3},
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    expected = logits(model)
    model.save_pretrained(tmp_path / "peft")
    row = json.dumps({"prompt": "the sky is", "completion": "blue"})
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    rows = str(tmp_path / "rows.jsonl")
    (tmp_path / "config.py").write_text(
        "from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig\n"
        "from goat_jax.data.tasks.registry import language_files\n\n\n"
        "def get_config():\n"
        f"    rows, model = {rows!r}, ModelConfig({str(tmp_path / 'base')!r})\n"
        "    return RunConfig(model, language_files(rows, rows),\n"
        "        AdapterConfig('lora', modules_to_save=()),\n"
        "        train=TrainConfig(steps=9, batch_size=1, max_length=16, eval_batch_size=1))\n"
    )
    run = tmp_path / "run"
    import_adapter(tmp_path / "peft", str(tmp_path / "config.py"), ["--out", str(run)])
    restored = restore_run(run, None)
    ours = merge_model(
        restored.setup.graph,
        restored.state.trainable,
        restored.state.frozen(restored.setup.base),
    )
    scale = np.abs(expected).max()
    assert np.abs(np.asarray(ours(IDS)) - expected).max() < CLOSE * scale
    export_run(run, "peft", tmp_path / "again")
    before, after = (
        load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("peft", "again")
    )
    assert sorted(before) == sorted(after)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    pretrained = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(pretrained, tmp_path / "again")
    assert np.abs(logits(again) - expected).max() < CLOSE * scale


def test_experts_trained_apart_come_back():
    """Gate and up have first factors of their own, and together twice the rank."""
    rng = np.random.default_rng(0)
    sizes = {"gate": (4, 6), "up": (4, 6), "down": (6, 4)}

    def trained(inputs, outputs):
        a, b = rng.normal(size=(inputs, 2)), rng.normal(size=(2, outputs))
        return LowRank(a.astype(np.float32), b.astype(np.float32), 2.0, None, True)

    modules = {f"l.e.{x}.{part}": trained(*sizes[part]) for x in range(3) for part in sizes}
    others, joined = join_experts({**modules, "l.q": trained(4, 4)}, (GATE_AND_UP, DOWN), 3)
    assert list(others) == ["l.q"]
    assert {name: each.a.shape[2] for name, each in joined.items()} == {
        "l.e.gate_up": 4,
        "l.e.down": 2,
    }
    tensors = expert_tensors(joined, (GATE_AND_UP, DOWN))
    assert tensors["l.e.base_layer.lora_A.weight"].shape == (12, 4)
    read = {
        name: {key: tensors[f"{name}.lora_{letter}.weight"].T[None] for key, letter in PAIR}
        for name in ("l.e", "l.e.base_layer")
    }
    imported = Imported(
        source="folder",
        base=None,
        base_sha256=None,
        options={"total_rank": 2, "alpha": 2.0},
        settles_all=True,
        overrides=(),
        modules=read,
        head={},
        parameters=("e.gate_up", "e.down"),
        config={"r": 2, "lora_alpha": 4, "rank_pattern": {"l.e.gate_up": 4}},
    )
    split = split_experts(imported, (GATE_AND_UP, DOWN), 3)
    for name, module in modules.items():
        scale = 1.0 if name.endswith("down") else 2.0
        found = split.modules[name]
        np.testing.assert_array_equal(found["a"][0], module.a)
        np.testing.assert_array_equal(found["b"][0], scale * module.b)
    by_size = {values["alpha"]: set(names) for names, values in split.overrides}
    assert by_size == {4.0: {f"l.e.{x}.down" for x in range(3)}}


PAIR = (("a", "A"), ("b", "B"))
