"""The load balancing loss of a base model's own routers is that of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_language
from goat_jax.adapters.context import Context
from goat_jax.adapters.methods import method_spec
from goat_jax.injection.inject import inject
from goat_jax.models.load import load_model
from goat_jax.nn.dense import split_model
from goat_jax.training.losses import LANGUAGE
from goat_jax.training.step import forward
from tiers import first_of_each

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
write_decoder = pytest.importorskip("tiny_torch_decoders").write_decoder

pytestmark = pytest.mark.slow
WEIGHT = 0.3
TYPES = ("qwen3_moe", "mixtral", "olmoe", "gpt_oss")


@pytest.mark.parametrize("model_type", first_of_each(TYPES, lambda name: ["a mixture"]))
def test_the_loss_and_its_part_in_training_are_transformers(model_type, tmp_path):
    on = {"output_router_logits": True, "router_aux_loss_coef": WEIGHT}
    theirs = write_decoder(tmp_path / "model", model_type, **on).train()
    ids = np.random.default_rng(0).integers(4, len(tiny_language.WORDS), (3, 7)).astype(np.int32)
    mask = np.arange(7) < np.array([[7], [4], [6]])
    found = theirs(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long())
    model = load_model(tmp_path / "model", key=jax.random.key(0)).model
    spec = method_spec("lora", total_rank=2, dropout=0.0)
    inject(model, spec, r".*q_proj", key=jax.random.key(1))
    parts, ctx = split_model(model), Context(mask=jnp.asarray(mask))
    weights = np.ones(len(ids), np.float32)
    batch = {"input_ids": ids, "attention_mask": mask.astype(np.int32)}
    batch |= {"loss_mask": mask.astype(np.int32), "weights": weights}
    balance = jax.jit(lambda: forward(*parts, batch, LANGUAGE, ctx).balance)()
    np.testing.assert_allclose(balance, WEIGHT * found.aux_loss.item(), rtol=1e-5)
    off = load_model(write_off(tmp_path, model_type), key=jax.random.key(0)).model
    assert not off.config.mixture.balance_weight


def write_off(root, model_type):
    write_decoder(root / "off", model_type, output_router_logits=False)
    return root / "off"
