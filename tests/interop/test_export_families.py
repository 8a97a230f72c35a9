"""Exports of every family of models, reloaded with transformers and PEFT: the same logits."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import tiny_language
import tiny_run
from goat_jax.adapters.context import EVAL
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import files, language_files, make_task, token_files
from goat_jax.injection.targets import TASK_HEAD
from goat_jax.interop.export_run import export_run
from goat_jax.nn.dense import merge_model, run_model
from goat_jax.nn.named_modules import adapted_names, reports_by_name
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.trainer import begin
from kinds import present
from tiers import first_of_each
from trained import trained_elsewhere

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
transformers = pytest.importorskip("transformers")
encoder_parity = pytest.importorskip("encoder_parity")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

CLOSE = 1e-5
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": 20, "max_position_embeddings": 8}


WARM = OptimizerConfig(warmup_steps=0)


def llama(root: Path) -> RunConfig:
    tiny_language.write_model(root / "model")
    rows = '{"prompt": "what is the sky ?", "completion": "blue"}\n' * 4
    (root / "rows.jsonl").write_text(rows)
    task = language_files(str(root / "rows.jsonl"), str(root / "rows.jsonl"))
    train = TrainConfig(steps=2, batch_size=2, eval_batch_size=2, max_length=16)
    adapter = AdapterConfig("pissa", total_rank=4, modules_to_save=(), dropout=0.0)
    return RunConfig(ModelConfig(str(root / "model")), task, adapter, WARM, train)


def roberta(root: Path) -> RunConfig:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *tiny_run.GOOD, *tiny_run.BAD, *tiny_run.PLAIN]
    config = transformers.RobertaConfig(
        **SIZES,
        vocab_size=len(words),
        max_position_embeddings=48,
        type_vocab_size=1,
        pad_token_id=0,
    )
    transformers.RobertaForSequenceClassification(config).save_pretrained(root / "model")
    return sentences(root, words)


def sentences(root: Path, words: list[str]) -> RunConfig:
    tiny_run.write_tokenizer(root / "model", words)
    rows = str(tiny_run.write_rows(root / "rows.jsonl", 4, seed=0))
    train = TrainConfig(steps=2, batch_size=2, eval_batch_size=2, max_length=24)
    adapter = AdapterConfig("pissa", total_rank=4, dropout=0.0)
    task = files(rows, rows, labels=("bad", "good"))
    return RunConfig(ModelConfig(str(root / "model")), task, adapter, WARM, train)


def encoder(case: str, root: Path) -> RunConfig:
    encoder_parity.write(root / "model", case)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *tiny_run.GOOD, *tiny_run.BAD, *tiny_run.PLAIN]
    return sentences(root, words)


def tags(root: Path) -> RunConfig:
    """Labels of words, by the family whose layers are fused and whose head has two layers."""
    labels, kind = ("O", "B-PER", "I-PER"), "ForTokenClassification"
    encoder_parity.write(root / "model", "modernbert", kind=kind, num_labels=3, num_hidden_layers=1)
    config = sentences(root, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *tiny_run.GOOD])
    rows = str(root / "rows.jsonl")
    row = {"tokens": tiny_run.GOOD[:2], "ner_tags": ["B-PER", "O"]}
    (root / "rows.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    adapter = AdapterConfig("lora", modules_to_save=(TASK_HEAD,), total_rank=4, dropout=0.0)
    return dataclasses.replace(config, task=token_files(rows, rows, labels), adapter=adapter)


def images(root: Path, model) -> RunConfig:
    model.save_pretrained(root / "model")
    task = make_task("digits", evaluation_limit=8)
    task = dataclasses.replace(task, image_size=16)
    train = TrainConfig(steps=2, batch_size=2, eval_batch_size=4)
    adapter = AdapterConfig("pissa", total_rank=4, dropout=0.0)
    return RunConfig(ModelConfig(str(root / "model")), task, adapter, WARM, train)


def vit(root: Path) -> RunConfig:
    config = transformers.ViTConfig(**IMAGE, num_labels=10)
    return images(root, transformers.ViTForImageClassification(config))


def dinov2(root: Path) -> RunConfig:
    sizes = {name: size for name, size in IMAGE.items() if name != "intermediate_size"}
    config = transformers.Dinov2Config(**sizes, mlp_ratio=2, num_labels=10)
    return images(root, transformers.Dinov2ForImageClassification(config))


def deit(root: Path) -> RunConfig:
    """A base of another class of transformers, which has other labels."""
    config = transformers.DeiTConfig(**IMAGE, num_labels=4)
    return images(root, transformers.DeiTForImageClassificationWithTeacher(config))


def beit(root: Path) -> RunConfig:
    config = transformers.BeitConfig(**IMAGE, num_labels=4)
    return images(root, transformers.BeitForImageClassification(config))


def siglip(root: Path) -> RunConfig:
    config = transformers.SiglipConfig(vision_config=IMAGE, text_config=TEXT, num_labels=4)
    return images(root, transformers.SiglipForImageClassification(config))


def registers(root: Path) -> RunConfig:
    sizes = {name: size for name, size in IMAGE.items() if name != "intermediate_size"}
    config = transformers.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2, num_labels=10)
    return images(root, transformers.Dinov2WithRegistersForImageClassification(config))


FAMILIES = {
    "llama": (llama, transformers.AutoModelForCausalLM),
    "roberta": (roberta, transformers.AutoModelForSequenceClassification),
    **{
        case: (partial(encoder, case), transformers.AutoModelForSequenceClassification)
        for case in ("modernbert", "albert", "deberta v2", "electra", "mpnet", "camembert")
    },
    "tags": (tags, transformers.AutoModelForTokenClassification),
    "vit": (vit, transformers.AutoModelForImageClassification),
    "dinov2": (dinov2, transformers.AutoModelForImageClassification),
    "deit": (deit, transformers.AutoModelForImageClassification),
    "beit": (beit, transformers.AutoModelForImageClassification),
    "siglip": (siglip, transformers.AutoModelForImageClassification),
    "registers": (registers, transformers.AutoModelForImageClassification),
}
IMAGES = ("vit", "dinov2", "deit", "beit", "siglip", "registers")


def inputs(family, rows=3):
    rng = np.random.default_rng(0)
    if family in IMAGES:
        return {"pixel_values": rng.normal(size=(rows, 16, 16, 3)).astype(np.float32)}
    ids = rng.integers(4, 15, (rows, 7)).astype(np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def by_card(folder: Path, monkeypatch) -> dict:
    """Runs the lines of a folder's card, in the folder above."""
    card = (folder / "README.md").read_text()
    names: dict = {}
    monkeypatch.chdir(folder.parent)
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    return names


def our_logits(folder, given):
    run = restore_run(folder, None)
    model = merge_model(run.setup.graph, run.state.trainable, run.state.frozen(run.setup.base))
    return np.asarray(model(*map(jnp.asarray, given.values()), ctx=EVAL))


def their_logits(model, given):
    if "pixel_values" in given:
        given = {"pixel_values": given["pixel_values"].transpose(0, 3, 1, 2).copy()}
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    with torch.no_grad():
        return model.eval()(**tensors).logits.float().numpy()


# BERT, CLIP and decoders have files of their own; CI adds tags, whose logits are those of every
# token.
@pytest.mark.parametrize(
    "family",
    first_of_each(FAMILIES, lambda _: (), first=["tags"], marks=()),
)
def test_peft_and_merged_models_have_the_run_s_logits(family, tmp_path, monkeypatch):
    make, auto = FAMILIES[family]
    config = dataclasses.replace(make(tmp_path), out=str(tmp_path / "run"))
    run = begin(config, trained_elsewhere).folder
    given = inputs(family)
    ours = our_logits(run, given)
    export_run(run, "merged", tmp_path / "merged")
    merged = their_logits(auto.from_pretrained(tmp_path / "merged"), given)
    assert np.abs(merged - ours).max() < CLOSE * max(1, np.abs(ours).max())
    export_run(run, "peft", tmp_path / "peft")
    names = by_card(tmp_path / "peft", monkeypatch)
    loaded = their_logits(names["model"], given)
    with names["model"].disable_adapter():
        before = their_logits(names["model"], given)
    classes = names["base"].config.id2label
    assert list(classes.values()) == list(getattr(config.task, "labels", ()) or classes.values())
    assert np.abs(loaded - ours).max() < CLOSE * max(1, np.abs(ours).max())
    assert np.abs(loaded - before).max() > 1e-2


# A decoder and BERT in CI: test_routed_model.py and test_export.py.
@pytest.mark.nightly
@pytest.mark.parametrize(
    "family",
    [name for name in FAMILIES if name not in ("modernbert", "tags")],  # have fused layers
)
def test_routed_experts_are_exact_in_a_folder_with_its_code(family, tmp_path):
    make, auto = FAMILIES[family]
    config = make(tmp_path)
    adapter = dataclasses.replace(config.adapter, method="goat", total_rank=8, num_experts=4)
    config = dataclasses.replace(config, adapter=adapter, out=str(tmp_path / "run"))
    run = begin(config, trained_elsewhere).folder
    given = inputs(family)
    ours = our_logits(run, given)
    export_run(run, "transformers", tmp_path / "out")
    model, report = auto.from_pretrained(
        tmp_path / "out", trust_remote_code=True, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert np.abs(their_logits(model, given) - ours).max() < CLOSE * max(1, np.abs(ours).max())


@pytest.mark.nightly
@pytest.mark.parametrize("family", IMAGES)
def test_routed_experts_of_images_are_exact_in_the_tuner(family, tmp_path, monkeypatch):
    pytest.importorskip("goat_jax.torch")
    config = FAMILIES[family][0](tmp_path)
    adapter = dataclasses.replace(config.adapter, method="goat", total_rank=8, num_experts=4)
    config = dataclasses.replace(config, adapter=adapter, out=str(tmp_path / "run"))
    run = begin(config, trained_elsewhere).folder
    given = inputs(family)
    ours = our_logits(run, given)
    export_run(run, "peft", tmp_path / "peft")
    model = by_card(tmp_path / "peft", monkeypatch)["model"]
    assert np.abs(their_logits(model, given) - ours).max() < CLOSE * max(1, np.abs(ours).max())
    with model.disable_adapter():
        assert np.abs(their_logits(model, given) - ours).max() > 1e-2


def our_routes(folder, given):
    """A run's logits, and the experts' weights (B, T, E) of every module."""
    run = restore_run(folder, None)
    model = merge_model(run.setup.graph, run.state.trainable, run.state.frozen(run.setup.base))
    ctx = dataclasses.replace(EVAL, per_token=True)
    logits, sown = run_model(model, *map(jnp.asarray, given.values()), ctx=ctx)
    names, weights = adapted_names(model), {}
    for pattern, report in reports_by_name(model, sown).items():
        weights |= dict(zip(names[pattern], np.asarray(present(report.weights)), strict=True))
    return np.asarray(logits, np.float32), weights


def their_routes(model, given):
    """The same of the tuner's model."""
    weights, hooks = {}, []
    for name, module in model.named_modules():
        if name.endswith(".goat_experts.default"):
            ours = name.removeprefix("base_model.model.").removesuffix(".goat_experts.default")
            keep = partial(lambda ours, _, inputs, found: weights.update({ours: found[0]}), ours)
            hooks.append(module.router.register_forward_hook(keep))
    logits = their_logits(model, given)
    for hook in hooks:
        hook.remove()
    return logits, {name: value.numpy() for name, value in weights.items()}


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["goat", "molora_soft"])
@pytest.mark.parametrize("family", ["llama", "roberta", "vit"])
def test_routed_experts_in_bfloat16(family, method, tmp_path, monkeypatch):
    """With -s it prints a row of the table in docs/export_import.md, in per cent."""
    pytest.importorskip("goat_jax.torch")
    torch.manual_seed(0)
    config = FAMILIES[family][0](tmp_path)
    adapter = dataclasses.replace(config.adapter, method=method, total_rank=8, num_experts=4)
    model = dataclasses.replace(config.model, dtype="bfloat16")
    config = dataclasses.replace(config, adapter=adapter, model=model, out=str(tmp_path / "run"))
    run = begin(config, trained_elsewhere).folder
    given = inputs(family, rows=64)
    export_run(run, "peft", tmp_path / "peft")
    model = by_card(tmp_path / "peft", monkeypatch)["model"]
    assert model.dtype == torch.bfloat16
    (ours, our_weights), (theirs, their_weights) = (
        our_routes(run, given),
        their_routes(model, given),
    )
    exact = their_logits(model.float(), given)
    same = np.stack(
        [
            ((weights > 0) == (their_weights[name].reshape(weights.shape) > 0)).all(-1)
            for name, weights in our_weights.items()
        ]
    )
    # A logit hangs on the tokens that its token sees: all those before it, or all of the row.
    agree = same.all(0)
    agree = np.cumprod(agree, axis=1) > 0 if ours.ndim == 3 else np.all(agree, axis=1)
    between, to_ours, to_theirs = (
        np.abs(one - other) / exact.std()
        for one, other in ((ours, theirs), (ours, exact), (theirs, exact))
    )
    rms = lambda values: np.sqrt(np.square(values).mean())  # noqa: E731
    alike = between[agree]
    numbers = [1 - same.mean(), alike.max(), rms(alike), between.max(), rms(between)]
    numbers += [rms(to_ours), rms(to_theirs)]
    print("|", family, "|", method, "|", *(f"{100 * n:.1f} |" for n in numbers))
    assert agree.any() and numbers[0] < 0.02
    assert alike.max() < 0.15 and rms(alike) < 0.02
