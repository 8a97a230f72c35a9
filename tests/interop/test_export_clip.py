"""Exports of runs on image encoders: transformers' classes load them and have our logits."""

import dataclasses
import json
import string
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from goat_jax.adapters.context import EVAL
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.pipeline.image_transforms import array_image
from goat_jax.data.pipeline.image_view import view_of
from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.registry import make_task
from goat_jax.errors import UserError
from goat_jax.interop.export_run import export_run
from goat_jax.interop.folders import ADAPTER, ADAPTER_CONFIG
from goat_jax.nn.dense import merge_model
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.training.trainer import begin
from kinds import expect
from tiers import first_of_each
from trained import trained_elsewhere

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

CLOSE = 1e-5
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = SIZES | {"intermediate_size": 48, "image_size": 16, "patch_size": 8}
TEXT = SIZES | {"intermediate_size": 40, "vocab_size": 74, "max_position_embeddings": 24}
LABELS = tuple(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


def clip(kind):
    text, vision = TEXT | {"eos_token_id": 73, "bos_token_id": 72, "pad_token_id": 73}, IMAGE
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    return getattr(transformers, kind)(config)


def siglip(kind):
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=IMAGE)
    config.text_config.projection_size = SIZES["hidden_size"]
    return getattr(transformers, kind)(config)


MODELS = {
    "clip": lambda: clip("CLIPModel"),
    "clip_vision_model": lambda: transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**IMAGE)
    ),
    "siglip": lambda: siglip("SiglipModel"),
    "siglip_vision_model": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**IMAGE)
    ),
    "beit": lambda: transformers.BeitModel(
        transformers.BeitConfig(**IMAGE, use_relative_position_bias=True)
    ),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**IMAGE)),
    "deit": lambda: transformers.DeiTModel(transformers.DeiTConfig(**IMAGE)),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**{**IMAGE, "mlp_ratio": 2})
    ),
    "dinov3_vit": lambda: transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(**IMAGE, num_register_tokens=2)
    ),
    "dinov2": lambda: transformers.Dinov2Model(
        transformers.Dinov2Config(**{**IMAGE, "mlp_ratio": 2})
    ),
}
"""model_type -> a random model without classifier."""


def write_model(family: str, folder: Path) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        model = MODELS[family]()
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    letters = string.ascii_lowercase + string.digits
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """(family, head, what is trained besides the adapters, dtype) -> the folder of a run."""

    def run(family, head, train, dtype="float32", method="lora"):
        root = tmp_path_factory.mktemp(family)
        write_model(family, root / "model")
        task = make_task("digits", evaluation_limit=4)
        task = dataclasses.replace(task, image_size=16, labels=LABELS, prompt="a {} there")
        model = ModelConfig(str(root / "model"), dtype=dtype, options={"head": head})
        adapter = AdapterConfig(method, total_rank=8, modules_to_save=train, dropout=0.0)
        config = RunConfig(
            model,
            task,
            adapter,
            OptimizerConfig(warmup_steps=0),
            TrainConfig(steps=2, batch_size=2, eval_batch_size=4),
            out=str(root / "run"),
        )
        return begin(config, trained_elsewhere).folder

    return run


@pytest.fixture(scope="module")
def zero_shot(run_of):
    return run_of("clip", "zero_shot", ())


@pytest.fixture(scope="module")
def merged(zero_shot, tmp_path_factory):
    """The zero-shot run as a whole CLIP: (its folder, what the export says)."""
    folder = tmp_path_factory.mktemp("merged") / "out"
    return folder, export_run(zero_shot, "merged", folder)


PIXELS = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
THEIRS = torch.tensor(PIXELS.transpose(0, 3, 1, 2).copy())


def our_logits(folder):
    run = restore_run(folder, None)
    model = merge_model(run.setup.graph, run.state.trainable, run.state.frozen(run.setup.base))
    return np.asarray(model(jnp.asarray(PIXELS), ctx=EVAL))


def snippet(folder):
    """The names that the card's Python lines make, run beside the exported folder."""
    card = (folder / "README.md").read_text()
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.chdir(folder.parent)
        exec(card.rpartition("```python\n")[2].partition("```")[0], names)
    return names


def load_whole(kind, folder):
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


def check_same(theirs, ours):
    assert np.abs(theirs.detach().numpy() - ours).max() < CLOSE * max(1, np.abs(ours).max())


def test_a_zero_shot_run_becomes_a_whole_clip(zero_shot, merged):
    out, made = merged
    assert "give it the prompt of every class" in made.notes[0]
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["CLIPModel"]
    model = load_whole(transformers.CLIPModel, out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    texts = tokenizer([f"a {name} there" for name in LABELS], padding=True, return_tensors="pt")
    ours = our_logits(zero_shot)
    assert ours.std(1).min() > 1e-2
    check_same(model(pixel_values=THEIRS, **texts).logits_per_image, ours)
    check_same(snippet(out)["logits"](THEIRS), ours)


@pytest.mark.nightly
def test_a_zero_shot_run_of_siglip_becomes_a_whole_one(run_of, tmp_path):
    run = run_of("siglip", "zero_shot", ())
    export_run(run, "merged", tmp_path / "merged")
    load_whole(transformers.SiglipModel, tmp_path / "merged")
    ours = our_logits(run)
    assert ours.std(0).max() > 1e-2
    check_same(snippet(tmp_path / "merged")["logits"](THEIRS), ours)
    export_run(run, "peft", tmp_path / "peft")
    theirs = snippet(tmp_path / "peft")["model"].merge_and_unload().state_dict()
    whole = load_whole(transformers.SiglipModel, tmp_path / "merged").state_dict()
    for name, tensor in whole.items():
        np.testing.assert_allclose(theirs[name], tensor, atol=CLOSE, err_msg=name)


def test_what_was_not_adapted_stays_as_it_was(zero_shot, merged):
    before = load_file(zero_shot.parent / "model" / "model.safetensors")
    after = load_file(merged[0] / "model.safetensors")
    assert set(before) == set(after)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    kernels = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    layers = [f"vision_model.encoder.layers.{layer}." for layer in (0, 1)]
    assert len(moved) == 12 and all(
        name.startswith(tuple(layers)) and name.split(".")[-2] in kernels for name in moved
    )


@pytest.mark.nightly
def test_a_trained_class_matrix_has_no_place_in_a_clip(run_of, tmp_path):
    run = run_of("clip", "zero_shot", ("classifier",))
    for to in ("merged", "peft"):
        with pytest.raises(
            UserError, match="its class matrix was trained, and transformers' model"
        ):
            export_run(run, to, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
@pytest.mark.parametrize("to", ["transformers", "peft"])
@pytest.mark.parametrize(
    "family, head, train",
    [
        ("clip", "zero_shot", ()),
        ("clip", "linear", ("classifier",)),
        ("vit", "linear", ("classifier",)),
    ],
    ids=["zero-shot", "clip", "vit"],
)
def test_routed_experts_of_an_image_encoder_are_exact(family, head, train, to, run_of, tmp_path):
    run = run_of(family, head, train, method="goat")
    export_run(run, to, tmp_path / "out")
    names = snippet(tmp_path / "out")
    model, ours = names["model"].eval(), our_logits(run)
    if head == "zero_shot":
        prompts = [f"a {name} there" for name in LABELS]
        tokenizer = transformers.AutoTokenizer.from_pretrained(run.parent / "model")
        texts = tokenizer(prompts, padding=True, return_tensors="pt")
        theirs = lambda: model(pixel_values=THEIRS, **texts).logits_per_image  # noqa: E731
    else:
        theirs = lambda: model(THEIRS).logits  # noqa: E731
        assert list(model.config.id2label.values()) == list(LABELS)
    check_same(theirs(), ours)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_("expert_b" not in name)
        assert np.abs(theirs().numpy() - ours).max() > 1e-2


@pytest.mark.nightly
def test_a_routed_zero_shot_run_is_told_where_its_class_matrix_has_a_place(run_of, tmp_path):
    run = run_of("clip", "zero_shot", ("classifier",), method="goat")
    with pytest.raises(UserError, match="if its class matrix was not trained; --to goat keeps it"):
        export_run(run, "merged", tmp_path / "merged")
    with pytest.raises(UserError, match=r"its class matrix was trained, .*; use --to goat, or"):
        export_run(run, "peft", tmp_path / "peft")
    export_run(run, "goat", tmp_path / "goat")
    head = load_file(tmp_path / "goat" / ADAPTER)
    assert any(name.endswith("classifier.weight") for name in head)


@pytest.mark.nightly
def test_a_trained_projection_has_one(run_of, tmp_path):
    run = run_of("clip", "zero_shot", ("visual_projection",))
    export_run(run, "merged", tmp_path / "out")
    check_same(snippet(tmp_path / "out")["logits"](THEIRS), our_logits(run))


def test_peft_adapts_the_vision_tower_alone(zero_shot, merged, tmp_path):
    export_run(zero_shot, "peft", tmp_path / "out")
    names = snippet(tmp_path / "out")
    assert type(names["base"]) is transformers.CLIPModel
    theirs = names["model"].merge_and_unload().state_dict()
    whole = load_whole(transformers.CLIPModel, merged[0])
    for name, tensor in whole.state_dict().items():
        np.testing.assert_allclose(theirs[name], tensor, atol=CLOSE, err_msg=name)
    config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
    assert config["modules_to_save"] is None
    assert not any("classifier" in name for name in load_file(tmp_path / "out" / ADAPTER))


# CI exports a whole CLIP above, and the other towers with a head of their own
# (test_export_families.py); with one that was started here they are nightly.
@pytest.mark.parametrize(
    "family",
    first_of_each(
        [family for family in MODELS if family != "dinov3_vit"],
        lambda _: (),
        first=["clip_vision_model"],
        marks=(),
    ),
)
def test_a_linear_head_is_transformers_own(family, run_of, tmp_path):
    run = run_of(family, "linear", ("classifier",))
    export_run(run, "merged", tmp_path / "out")
    auto = transformers.AutoModelForImageClassification
    model = load_whole(auto, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert list(model.config.id2label.values()) == list(LABELS)
    check_same(model(THEIRS).logits, our_logits(run))
    check_same(snippet(tmp_path / "out")["model"](THEIRS).logits, our_logits(run))


@pytest.mark.nightly
def test_a_linear_head_that_transformers_does_not_have_is_beside_the_tower(run_of, tmp_path):
    run = run_of("dinov3_vit", "linear", ("classifier",))
    for to in ("merged", "peft"):
        export_run(run, to, tmp_path / to)
        check_same(snippet(tmp_path / to)["logits"](THEIRS), our_logits(run))
    assert (
        type(load_whole(transformers.AutoModel, tmp_path / "merged")).__name__ == "DINOv3ViTModel"
    )
    assert not any("classifier" in name for name in load_file(tmp_path / "peft" / ADAPTER))


@pytest.mark.nightly  # the dtype of merged weights is that of test_model_card.py
def test_a_run_in_bfloat16_loads_in_bfloat16(run_of, tmp_path):
    export_run(run_of("clip", "zero_shot", (), "bfloat16"), "merged", tmp_path / "out")
    model = load_whole(transformers.CLIPModel, tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("shape", [(16, 16, 3), (20, 30, 3)])
def test_images_are_prepared_as_the_run_prepared_them(zero_shot, merged, shape):
    config = load_run(zero_shot)[0]
    view = view_of(expect(ImageTask, config.task), config.model.path)
    pixels = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
    image = array_image(pixels)
    ours = view.numbers(view.whole(image))
    processor = transformers.AutoImageProcessor.from_pretrained(merged[0])
    theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
