"""Same losses on every mesh of eight devices as on one, family by family, method by method."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from goat_jax.adapters.methods import method_spec
from goat_jax.injection.inject import inject
from goat_jax.injection.quantize_base import quantize_base
from goat_jax.models.decoder.model import Decoder, tiny_decoder_config
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.models.vision.model import VisionModel, tiny_vision_config
from goat_jax.nn.attention import AttentionPlan
from goat_jax.nn.dense import split_model
from goat_jax.optim.transforms import Stages
from goat_jax.sharding.config import AXES, MeshConfig
from goat_jax.sharding.rules import make_sharding_rules, place_model
from goat_jax.testing import CountTraces, assert_close
from goat_jax.training.losses import CLASSIFICATION, IMAGE_CLASSIFICATION, LANGUAGE
from goat_jax.training.phase_change import make_phase_change, starting_constants
from goat_jax.training.shardings import set_activation_shardings, start_state
from goat_jax.training.step import make_train_step
from kinds import present

pytestmark = pytest.mark.slow

ROWS, TOKENS, STEPS = 8, 8, 4
HEADS = {"num_heads": 8, "num_layers": 2}
# One that leads into a block's inside and one that leads back.
TARGETS = r".*(query|q_proj|down_proj|fc2|[0-9]\.output\.dense)"
SHAPES = [s for s in itertools.product((1, 2, 4, 8), repeat=3) if s[0] * s[1] * s[2] == 8]
METHODS = {
    "goat": {"total_rank": 8, "num_experts": 4, "dropout": 0.1},
    "dora": {"total_rank": 4},
    "hydralora": {"total_rank": 8, "num_experts": 2},
}
OTHERS = {
    "lora": {"total_rank": 8, "dropout": 0.1},
    "lora_dash": {"total_rank": 4, "num_directions": 4, "change_step": 2},
}


def rng(seed=0):
    return np.random.default_rng(seed)


def text(rows=ROWS):
    ids = rng().integers(5, 60, (rows, TOKENS))
    lengths = rng(1).integers(3, TOKENS + 1, rows)
    mask = (np.arange(TOKENS)[None] < lengths[:, None]).astype(np.int32)
    both = {"input_ids": ids.astype(np.int32), "attention_mask": mask}
    return {**both, "weights": np.ones(rows, np.float32)}


def labelled(rows=ROWS):
    return {"labels": rng(2).integers(0, 2, rows).astype(np.int32)}


FAMILIES = {
    "encoder": (
        lambda **sizes: Encoder(tiny_config(vocab_size=102, **HEADS, **sizes), rngs=nnx.Rngs(0)),
        CLASSIFICATION,
        lambda: text() | labelled() | {"token_type_ids": np.zeros((ROWS, TOKENS), np.int32)},
        ("classifier",),
    ),
    "decoder": (
        lambda **sizes: Decoder(
            tiny_decoder_config(**{"num_kv_heads": 8, "head_size": 4, "num_heads": 8} | sizes),
            rngs=nnx.Rngs(0),
        ),
        LANGUAGE,
        lambda: text() | {"loss_mask": np.ones((ROWS, TOKENS), np.int32)},
        (),
    ),
    "vision": (
        lambda **sizes: VisionModel(tiny_vision_config("vit", **HEADS, **sizes), rngs=nnx.Rngs(0)),
        IMAGE_CLASSIFICATION,
        lambda: (
            {
                "pixel_values": rng().normal(size=(ROWS, 16, 16, 3)).astype(np.float32),
                "weights": np.ones(ROWS, np.float32),
            }
            | labelled()
        ),
        ("classifier",),
    ),
}


# On (2, 2, 2), fsdp divides 128 rows between blocks of 64, and tensor 192 rows inside of one.
QUANTIZED_SIZES = {"hidden_size": 128, "intermediate_size": 192}


def packed():
    """Rows of two texts each, whose border is not that of a device."""
    segments = (np.arange(TOKENS)[None] >= np.arange(ROWS)[:, None] % 5 + 1).astype(np.int32)
    return text() | {"segments": segments + 1, "attention_mask": np.ones((ROWS, TOKENS), np.int32)}


def in_blocks(make, **sizes):
    """Returns a maker of models whose attention takes the devices' heads, as the kernels do."""

    def maker(**more):
        model = make(**sizes, **more)
        model.attention = AttentionPlan("blocks")
        return model

    return maker


def packed_decoder(heads, groups):
    """Causal and windowed layers on packed rows."""
    sizes = {"num_heads": heads, "num_kv_heads": groups, "windows": (None, 3)}
    batch_of = lambda: packed() | {"loss_mask": np.ones((ROWS, TOKENS), np.int32)}  # noqa: E731
    return in_blocks(FAMILIES["decoder"][0], **sizes), LANGUAGE, batch_of, ()


# With fewer key heads than devices, and with heads that the devices cannot share.
FAMILIES |= {"packed": packed_decoder(8, 2), "uneven-packed": packed_decoder(6, 3)}
FAMILIES["encoder-blocks"] = (in_blocks(FAMILIES["encoder"][0]), *FAMILIES["encoder"][1:])


def train(family, method, shape, kind=None, steps=STEPS):
    """(losses, state, base, program) of some steps on a mesh, or on one device for None."""
    make, loss_fn, batch_of, heads = FAMILIES[family]
    model, batch = make(**({} if kind is None else QUANTIZED_SIZES)), batch_of()
    rules = None if shape is None else make_sharding_rules(MeshConfig(*shape))
    if rules is not None:
        place_model(model, rules)
    spec = method_spec(method, **(METHODS | OTHERS)[method])
    inject(model, spec, TARGETS, key=jax.random.key(0), modules_to_save=heads, sharder=rules)
    if kind is not None:
        quantize_base(model, kind, rules)
    set_activation_shardings(model, rules)
    graph, trainable, base = split_model(model)
    adam = Stages(optax.identity(), optax.scale_by_adam(), optax.scale_by_learning_rate(1e-3))
    optimizer = spec.transform(adam, None, steps)
    constants = starting_constants(model, spec.phases)
    state, base, shardings = start_state(
        model, rules, trainable, base, optimizer, jax.random.key(1), constants
    )
    there = batch if shardings is None else shardings.put_share(batch, ROWS)
    loss = CountTraces(loss_fn.loss)
    step = make_train_step(
        graph,
        dataclasses.replace(loss_fn, loss=loss),
        optimizer,
        aux_weight=spec.aux_weight,
        shardings=None if shardings is None else shardings.in_step(),
    )
    program = ""
    if shape is not None and (kind is not None or len(shape) == len(AXES)):
        # For its text only: on CPUs jax refuses 4-bit arguments of a program compiled ahead.
        program = present(step.lower(state, base, there).compile().as_text())
    losses = []
    state_shardings = None if shardings is None else shardings.state
    change = make_phase_change(graph, optimizer, spec.phases, state_shardings)
    for number in range(1, steps + 1):
        state, metrics = step(state, base, there)
        losses.append(float(metrics["loss"]))
        if number == spec.phases.change_step:
            state = change(state, base)
    assert loss.count == 1
    return losses, state, base, program


@pytest.fixture(scope="module")
def alone():
    """Losses on one device, computed once."""
    known = {}

    def get(*case):
        if case not in known:
            family, method, kind = case
            known[case] = train(family, method, None, kind)[0]
        return known[case]

    return get


def check(alone, family, method, shape, kind=None):
    losses, state, base, program = train(family, method, shape, kind)
    assert len(set(losses)) == STEPS
    assert_close(losses, alone(family, method, kind), 1e-5)
    assert all(a.sharding.mesh.size == 8 for a in jax.tree.leaves((state.trainable, base)))
    return state, base, program


# The change is applied to whole arrays, as on one device in test_phases.py.
@pytest.mark.nightly
def test_a_switch_between_two_steps_is_that_of_one_device(alone):
    state, _, _ = check(alone, "encoder", "lora_dash", (2, 2, 2))
    arrays = jax.tree_util.tree_leaves_with_path(state.trainable)
    learnt = [array for path, array in arrays if path[-1].key == "coefficients"]
    # They have a gradient, and so a part in the last loss, only if there are directions.
    assert learnt and all(np.abs(array).min() > 0 for array in learnt)


# Every family and every method on every shape, but not every method of every family on each.
GRID = [
    (family, list(METHODS)[(i + j) % len(METHODS)], shape)
    for i, family in enumerate(("encoder", "decoder", "vision"))
    for j, shape in enumerate(SHAPES)
] + [("encoder", "goat", (2, 2, 2))]


def marks(family, method, shape):
    """On (2, 2, 2) every family meets every axis, all but this one in other tests."""
    return () if (family, shape) == ("vision", (2, 2, 2)) else (pytest.mark.nightly,)


@pytest.mark.parametrize(
    ("family", "method", "shape"),
    [pytest.param(*case, marks=marks(*case), id="-".join(map(str, case))) for case in GRID],
)
def test_no_mesh_changes_a_loss(alone, family, method, shape):
    check(alone, family, method, shape)


QUANTIZED_GRID = [
    pytest.param(
        family, kind, shape,
        marks=() if (family, kind, shape[1]) == ("decoder", "nf4", 2) else pytest.mark.nightly,
        id="-".join(map(str, (family, kind, shape))),
    )
    for family, kind, shape in itertools.product(
        ("decoder", "encoder"), ("nf4", "int8"), ((2, 2, 2), (1, 8, 1))
    )
]  # fmt: skip


@pytest.mark.parametrize(("family", "kind", "shape"), QUANTIZED_GRID)
def test_a_quantised_base_keeps_its_losses_and_is_exchanged_in_codes(alone, family, kind, shape):
    pytest.importorskip("qwix")
    _, base, program = check(alone, family, "goat", shape, kind)
    leaves = jax.tree_util.tree_leaves_with_path(base)
    codes = [array for path, array in leaves if path[-1].key == "codes"]
    assert codes and all(a.sharding.shard_shape(a.shape) != a.shape for a in codes)
    # What is gathered of a layer's kernels, (1, I, O) in the scan: bytes, never floats.
    sizes = {a.shape[-2] for a in codes}
    found = re.findall(r"= (\w+)\[1,(\d+),\d+\]\S* all-gather\(", program)
    kinds = {dtype for dtype, rows in found if int(rows) in sizes}
    assert kinds == {{"nf4": "u8", "int8": "s8"}[kind]}


SEQUENCE_GRID = [
    pytest.param(
        family, method, shape,
        marks=() if (family, shape) == ("packed", (1, 2, 2, 2)) else pytest.mark.nightly,
        id="-".join(map(str, (family, method, shape))),
    )
    for family, method, shape in [
        *itertools.product(
            ("packed", "decoder", "encoder", "encoder-blocks"),
            ("goat",),
            ((2, 1, 1, 4), (1, 2, 2, 2), (1, 1, 1, 8)),
        ),
        ("uneven-packed", "goat", (2, 1, 1, 4)),
        ("packed", "lora", (1, 2, 1, 4)),
        ("encoder", "lora", (1, 2, 1, 4)),
        ("decoder", "dora", (1, 2, 1, 4)),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("family", "method", "shape"), SEQUENCE_GRID)
def test_tokens_on_several_devices_change_no_loss(alone, family, method, shape):
    _, _, program = check(alone, family, method, shape)
    # Hidden states kept for the backward pass, (layers, rows, tokens, 32), are parts of rows.
    rows, tokens = ROWS // (shape[0] * shape[1]), TOKENS // shape[3]
    assert f"f32[2,{rows},{tokens},32]" in program
    assert f"f32[2,{rows},{TOKENS},32]" not in program
    if family in ("packed", "encoder-blocks"):
        assert "all-to-all" in program  # of tokens for heads
