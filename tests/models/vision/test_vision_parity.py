"""Vision models against torch: logits, hidden states and gradients of tiny random models."""

import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from goat_jax.models.load import load_model
from goat_jax.models.registry import ARCHITECTURES
from goat_jax.models.vision.model import VisionModel, cubic_resize
from kinds import expect
from parity_table import exports
from tiers import first_of_each
from vision_parity import CASES, FAMILIES, PLAIN, TOLERANCE, pixels

ALL = pytest.mark.parametrize(
    "family",
    first_of_each(
        [family for family in FAMILIES if not family.endswith("_vision_model")],
        lambda _: (),
        first=["clip", "dinov2_with_registers", "siglip"],
    ),
)


def _name(case) -> str:
    family, settings, size = case
    own = (f"{key}={value}".replace(" ", "") for key, value in settings.items())
    return "-".join([family, "x".join(map(str, size)), *own])


def _parts(case) -> list[str]:
    """Parts a case can find wrong: a setting, a family's interpolation, or the family itself."""
    family, settings, size = case
    other = [f"{family} of another size"] if size not in ((16, 16), (18, 18)) else []
    return [*settings, *other] or [family]


def _run_torch(model, images, **options):
    return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), **options)


def _close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=0, atol=tolerance)


def _load(checkpoint, **options):
    return load_model(checkpoint.folder, key=jax.random.key(0), **options)


def test_every_family_is_compared_and_listed():
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text("utf-8")
    for name, count in Counter(family for family, _, _ in CASES).items():
        (row,) = re.findall(rf"`{name}`.* \| (\d+) \| (\S+) \| (.+) \|", page)
        assert int(row[0]) == count and float(row[1]) < TOLERANCE and row[2] == exports(name)


@pytest.fixture(scope="module")
def run(jit):
    """Last hidden states and logits of one of our models."""

    def outputs(graph, state, images):
        model = nnx.merge(graph, state)
        hidden = model.features(images)
        return hidden, model.classify(hidden)

    compiled = jit(outputs, static_argnums=0)
    return lambda model, images: compiled(*nnx.split(model), images)


@pytest.mark.parametrize("case", first_of_each(CASES, _parts, first=PLAIN), ids=_name)
def test_logits_and_hidden_states_are_torchs(case, save_vision, run):
    family, settings, size = case
    checkpoint = save_vision(family, **settings)
    loaded = _load(checkpoint)
    assert loaded.fresh == ()
    images = pixels(size, settings.get("num_channels", 3))
    prefix = ARCHITECTURES[family].prefix.removesuffix(".")
    tower = getattr(checkpoint.torch, prefix) if prefix else checkpoint.torch
    with torch.no_grad():
        expected = _run_torch(checkpoint.torch, images).logits
        states = _run_torch(tower, images).last_hidden_state
    assert expected.std(0).max() > 0.01  # the images tell
    hidden, logits = run(loaded.model, images)
    assert logits.dtype == np.float32
    _close(hidden, states)
    _close(logits, expected)


@pytest.mark.parametrize("old", [2, 5, 16, 37])
@pytest.mark.parametrize("new", [1, 2, 7, 16, 40])
def test_cubic_weights_are_torchs(old, new):
    rows = np.random.default_rng(0).normal(size=(1, 3, old, old)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(rows), size=(new, old), mode="bicubic", align_corners=False
    )
    _close(np.einsum("rR,bdRc->bdrc", cubic_resize(old, new), rows), expected)


def _needed(model, family):
    """The parameters of a torch model that ours has, too."""
    ignored = ARCHITECTURES[family].family.ignored
    return [pair for pair in model.named_parameters() if not re.fullmatch(ignored, pair[0])]


@pytest.mark.slow
@ALL
def test_every_gradient_is_torchs(family, save_vision, by_torch_name, jit):
    checkpoint, todays = save_vision(family, seed=3), ARCHITECTURES[family].todays_name
    ours, images, labels = _load(checkpoint).model, pixels((16, 16)), np.array([0, 2, 1])
    logits = _run_torch(checkpoint.torch, images).logits
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    graph, state = nnx.split(ours)

    def loss(state, images):
        logits = nnx.merge(graph, state)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradients = by_torch_name(nnx.merge(graph, jit(jax.grad(loss))(state, images)))
    expected = {
        todays(name): torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in _needed(checkpoint.torch, family)
    }
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        _close(gradient, expected[name])


@ALL
@pytest.mark.parametrize("today", [False, True], ids=["names4", "names5"])
def test_parameters_are_torchs_bit_by_bit(family, today, save_vision, by_torch_name):
    """transformers 5 writes the names of version 4 into files, unless told not to."""
    checkpoint = save_vision(family, seed=4, save_options={"save_original_format": not today})
    ours = by_torch_name(_load(checkpoint).model)
    todays = ARCHITECTURES[family].todays_name
    expected = {todays(name): value for name, value in _needed(checkpoint.torch, family)}
    assert set(ours) == set(expected)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, expected[name].detach().numpy(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip_vision_model", "vit", "siglip_vision_model"])
def test_a_tower_without_head_gets_a_new_one(family, save_vision, run):
    checkpoint = save_vision(family, "Model", seed=5)
    loaded = _load(checkpoint, num_labels=6)
    assert loaded.fresh == ("classifier.weight", "classifier.bias")
    images = pixels((16, 16))
    with torch.no_grad():
        expected = _run_torch(checkpoint.torch, images).last_hidden_state
    hidden, logits = run(loaded.model, images)
    _close(hidden, expected)
    assert logits.shape == (3, 6)


def test_a_whole_clip_gives_its_tower(save_vision, run):
    checkpoint = save_vision("clip", "Model", seed=6)
    loaded = _load(checkpoint)
    assert loaded.fresh == ("classifier.weight", "classifier.bias")
    images = pixels((16, 16))
    with torch.no_grad():
        expected = _run_torch(checkpoint.torch.vision_model, images).last_hidden_state
    _close(run(loaded.model, images)[0], expected)


@pytest.mark.slow
@ALL
def test_bfloat16_is_near_and_its_head_is_float32(family, save_vision, run):
    checkpoint = save_vision(family, seed=7)
    images = pixels((16, 16))
    narrow = _load(checkpoint, dtype=jnp.bfloat16).model
    hidden, logits = run(narrow, images)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    narrow = expect(VisionModel, narrow)
    assert narrow.head.classifier.kernel.dtype == narrow.final_norm.scale.dtype == jnp.float32
    assert narrow.embeddings.positions.value.dtype == jnp.float32
    with torch.no_grad():
        expected = _run_torch(checkpoint.torch, images).logits
    _close(logits, expected, 0.1 * float(expected.abs().max()))
