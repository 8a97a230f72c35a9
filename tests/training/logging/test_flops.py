"""FLOPs of attention in every way to compute it, against the plain form's and blocks of one."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from goat_jax.core.attention import Visible, attention_in_blocks
from goat_jax.nn.attention import AttentionPlan, attention
from goat_jax.training.logging.flops import matmul_flops

TOKENS, HEADS, SIZE = 256, 4, 64
PRODUCT = 2 * 2 * HEADS * SIZE * TOKENS**2
QUERY = jax.ShapeDtypeStruct((2, TOKENS, HEADS, SIZE), jnp.bfloat16)
KEY = jax.ShapeDtypeStruct((2, TOKENS, 2, SIZE), jnp.bfloat16)
DEVICE = {"cudnn": "cuda", "splash": "tpu"}


@pytest.fixture(autouse=True)
def _has_cudnn(monkeypatch):
    module = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{module}.check_cudnn_version", lambda *args: 91000)
    monkeypatch.setattr(f"{module}.check_compute_capability", lambda *args: True)
    monkeypatch.setattr("goat_jax.nn.attention_kernels._jax_refusal", lambda need: None)


def plan_of(way, **mesh):
    device = types.SimpleNamespace(platform=DEVICE.get(way, "cpu"), compute_capability="9.0")
    return AttentionPlan(way, device, **mesh)


def counts(visible, plan):
    """Counts forward, and forward and backward."""

    def forward(query, key):
        out = attention(query, key, key, visible=visible, plan=plan)
        return out.astype(jnp.float32).sum()

    # Splash attention has no kernel for bfloat16 at the tests' matmul precision.
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("default"):
        both = jax.value_and_grad(forward, argnums=(0, 1))
        return matmul_flops(forward, QUERY, KEY), matmul_flops(both, QUERY, KEY)


@pytest.mark.parametrize(
    ("way", "backward"), [("xla", 4), ("blocks", 5), ("cudnn", 5), ("splash", 7)]
)
def test_images_multiply_all_pairs(way, backward):
    """The plain form keeps its scores; the others compute them again, splash attention twice."""
    forward, both = counts(Visible(), plan_of(way))
    # Their backward passes begin with a product of output and gradient, by row.
    rows = 2 * 2 * HEADS * SIZE * TOKENS if way in ("blocks", "splash") else 0
    assert (forward, both - rows) == (2 * PRODUCT, (2 + backward) * PRODUCT)


@pytest.mark.parametrize("way", ["cudnn", "splash"])
@pytest.mark.parametrize("window", [None, 9])
def test_kernels_count_the_pairs_that_blocks_of_one_compute(way, window):
    visible = Visible(causal=True, window=window)
    blocks = matmul_flops(lambda q, k: attention_in_blocks(q, k, k, visible, block=1), QUERY, KEY)
    forward, _ = counts(visible, plan_of(way))
    assert forward == blocks == 4 * 2 * HEADS * SIZE * visible.pairs(TOKENS, TOKENS)


def test_pairs_are_those_of_the_mask():
    for causal in (False, True):
        for window in (None, 1, 3, 20):
            visible = Visible(causal=causal, window=window)
            mask = visible.mask(7, 7)
            admitted = 49 if mask is None else int(mask.sum())
            assert visible.pairs(7, 7) == admitted


@pytest.mark.parametrize("way", ["blocks", "cudnn", "splash"])
def test_a_mesh_does_the_same_work(way):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    shared = plan_of(way, mesh=mesh, rows=("fsdp",), heads=("tensor",))
    visible = Visible(causal=True)
    assert counts(visible, shared) == counts(visible, plan_of(way))


def test_what_is_computed_again_counts_again():
    visible, plan = Visible(causal=True), plan_of("cudnn")

    def loss(query, key):
        run = jax.checkpoint(lambda q, k: attention(q, k, k, visible=visible, plan=plan))
        return jnp.sin(run(query, key).astype(jnp.float32)).sum()

    pairs = visible.pairs(TOKENS, TOKENS)
    found = matmul_flops(jax.grad(loss, argnums=(0, 1)), QUERY, KEY)
    assert found == (2 + 2 + 5) * 2 * 2 * HEADS * SIZE * pairs


def test_an_odd_number_of_tokens_is_padded_for_cudnn():
    """An image of 16 x 16 patches and a class token counts the pairs of its own tokens."""
    plan, query = plan_of("cudnn"), jax.ShapeDtypeStruct((2, 257, HEADS, SIZE), jnp.bfloat16)

    def total(query, visible):
        out = attention(query, query, query, visible=visible, plan=plan)
        assert out.shape == query.shape
        return out.astype(jnp.float32).sum()

    for visible in (Visible(), Visible(real=jnp.ones((2, 257), bool))):
        found = matmul_flops(jax.value_and_grad(total), query, visible)
        assert found == 7 * 2 * 2 * HEADS * SIZE * 257**2
