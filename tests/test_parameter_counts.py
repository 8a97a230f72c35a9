"""The sizes of adapters that the paper prints, on layers of its models' real sizes."""

import jax
import numpy as np
import pytest
from flax import nnx

from goat_jax.adapters.methods import method_spec
from goat_jax.inject import inject
from goat_jax.layers import Dense
from goat_jax.models.vision import VisionConfig, VisionModel
from goat_jax.stack import Stack


class PaperBlock(nnx.Module):
    """The linear layers of a block of RoBERTa or ViT: width H, feed-forward 4H."""

    def __init__(self, width, *, rngs):
        for name in ("query", "key", "value", "out"):
            setattr(self, name, Dense(width, width, rngs=rngs))
        self.up, self.down = Dense(width, 4 * width, rngs=rngs), Dense(4 * width, width, rngs=rngs)


class PaperModel(nnx.Module):
    def __init__(self, width, layers):
        rngs = nnx.Rngs(0)
        self.layers = Stack(lambda r: PaperBlock(width, rngs=r), layers, rngs=rngs)


def count_adapter(spec, width, layers):
    """Parameters of an adapter on every linear layer of the blocks; only shapes are computed."""
    found = {}

    def build():
        model = PaperModel(width, layers)
        found["report"] = inject(model, spec, key=jax.random.key(0))
        return model

    nnx.eval_shape(build)
    return found["report"].adapter_parameters


@pytest.mark.parametrize(
    ("width", "layers", "total_rank", "lora_share", "goat_share", "model_size"),
    [
        (1024, 24, 32, 4.00, 4.50, 354e6),  # RoBERTa-large, table 8
        (768, 12, 8, 1.49, 2.24, 88e6),  # CLIP ViT-B/32's vision tower, table 5
    ],
)
def test_parameter_counts_of_the_paper(
    width, layers, total_rank, lora_share, goat_share, model_size
):
    """Section 4: 18 H r per block for LoRA, 9 H E more for the routers of a mixture."""
    sizes = {}
    for name in ("lora", "goat"):
        spec = method_spec(name, total_rank=total_rank)
        sizes[name] = count_adapter(spec, width, layers)
    assert sizes["lora"] == layers * 18 * width * total_rank
    assert sizes["goat"] == sizes["lora"] + layers * 9 * width * 8
    # And so the "# Params (%)" columns, which are rounded to 0.01.
    np.testing.assert_allclose(100 * sizes["lora"] / model_size, lora_share, atol=0.03)
    np.testing.assert_allclose(100 * sizes["goat"] / model_size, goat_share, atol=0.03)


@pytest.mark.parametrize(("name", "share"), [("lora", 1.49), ("molora", 2.24), ("goat", 2.24)])
def test_shares_of_clip_are_the_papers(name, share):
    """Table 5, of everything in the model: CLIP ViT-B/32 is what an empty config.json describes."""
    found = {}

    def build():
        config = VisionConfig.from_hf({"model_type": "clip"})
        model = VisionModel(config, rngs=nnx.Rngs(0))
        targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
        spec = method_spec(name, total_rank=8)
        found["report"] = inject(model, spec, targets, key=jax.random.key(0), train=["classifier"])
        return model

    nnx.eval_shape(build)
    report = found["report"]
    tower = report.total_parameters - report.trained_parameters
    assert tower == 87_456_000  # as in transformers
    np.testing.assert_allclose(
        100 * report.adapter_parameters / report.total_parameters, share, atol=0.02
    )
