"""Models with routed experts in folders with their own code: what transformers and servers see."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from goat_jax.adapters.methods import method_spec
from goat_jax.interop.folders import write_json, write_shards, write_tensors
from goat_jax.interop.hf_config import FORMS
from goat_jax.interop.merged import merged_config
from goat_jax.interop.modules import AdaptedModule
from goat_jax.interop.peft.routed import ROUTERS
from goat_jax.interop.routed_model import routed_weights, with_experts, write_code

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
transformers = pytest.importorskip("transformers")
write_decoder = pytest.importorskip("tiny_torch_decoders").write_decoder
modeling_goat = pytest.importorskip("goat_jax.torch.modeling_goat")

pytestmark = pytest.mark.slow

LAYERS = [f"model.layers.{n}.{m}" for n in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")]
IDS = torch.arange(4, 18).reshape(2, 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaMA with experts that are far from zero."""
    root, rng = tmp_path_factory.mktemp("routed"), np.random.default_rng(0)
    base = write_decoder(root / "model", "llama", tie_word_embeddings=False)
    spec, draw = method_spec("goat", total_rank=8, num_experts=4), rng.standard_normal
    modules, draws = {}, lambda *shape: draw(shape, np.float32) / 8
    for name in LAYERS:
        out_features, in_features = base.get_submodule(name).weight.shape
        factors = {
            "a": draws(4, in_features, 2),
            "b": draws(4, 2, out_features),
            "router": draws(in_features, 4),
        }
        scale = np.full(4, 3.0, np.float32)
        modules[name] = AdaptedModule(spec, np.zeros((0, 0)), factors, {}, scale)
    form = FORMS["language model", "language"]
    config = merged_config(base.config.to_dict(), form, "float32", ())
    tensors = {name: tensor.numpy() for name, tensor in base.state_dict().items()}
    out = root / "out"
    out.mkdir()
    write_shards(out, routed_weights(tensors.items(), modules, {}))
    write_code(out, config)
    write_json(out / "config.json", with_experts(config, form, modules))
    return out


@pytest.fixture(scope="module")
def model(folder):
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, trust_remote_code=True).eval()


def test_the_code_needs_torch_and_transformers_alone(folder):
    lines = (folder / "modeling_goat.py").read_text().splitlines()
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"__future__", "collections.abc", "typing", "torch", "transformers"}


def test_a_folder_without_one_tensor_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    del tensors[f"{LAYERS[0]}.expert_b.weight"]
    write_tensors(copy / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=rf"has no {LAYERS[0]}.expert_b.weight: copy it again"):
        transformers.AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True)


def test_experts_that_cannot_be_computed_are_refused_in_one_line(folder, tmp_path):
    for number, (change, message) in enumerate(
        (
            ({"router": "expert_choice"}, "router 'expert_choice' is unknown: one of none, "),
            ({"router_options": {"q": 1}}, "router 'top_k' has no such options: {'q': 1}"),
            ({"top_k": 9}, "top_k is 9, and there are 4 experts to choose"),
            ({}, f"{LAYERS[0]}.router.linear.weight is not finite: copy it again"),
        )
    ):
        copy = shutil.copytree(folder, tmp_path / str(number))
        config = json.loads((copy / "config.json").read_text())
        write_json(
            copy / "config.json",
            {**config, "goat": [{**group, **change} for group in config["goat"]]},
        )
        if not change:
            tensors = load_file(copy / "model.safetensors")
            tensors[f"{LAYERS[0]}.router.linear.weight"][0, 0] = np.nan
            write_tensors(copy / "model.safetensors", tensors)
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            transformers.AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True)
        assert "\n" not in str(error.value)


def test_experts_count_and_generation_has_a_cache(model):
    greedy = dict(max_new_tokens=3, do_sample=False, eos_token_id=None)
    cached, whole = (model.generate(IDS, use_cache=cache, **greedy) for cache in (True, False))
    assert cached.shape == (2, 10) and torch.equal(cached, whole)
    with torch.no_grad():
        before = model(IDS).logits
        for sign in (-1, 1):  # and back
            for layer in LAYERS:
                model.get_submodule(layer).expert_b.weight.mul_(-1)
            changed = (model(IDS).logits - before).abs().max()
            assert changed > 1e-2 if sign < 0 else changed == 0


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_disable:FutureWarning")
def test_gradients_are_those_of_checkpointing(model):
    found = []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        model.train().zero_grad()
        switch()
        model(IDS, labels=IDS).loss.backward()
        found.append(model.get_submodule(LAYERS[0]).router.linear.weight.grad.clone())
    model.gradient_checkpointing_disable()
    model.eval().zero_grad()
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found)


class Replaced(torch.nn.Module):
    """A server's linear layer, which is no `nn.Linear`."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias)


def replace_linear_layers(module):
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear):
            setattr(module, name, Replaced(child))
        else:
            replace_linear_layers(child)


def test_vllm_s_rule_replaces_every_linear_layer(folder, model):
    """The rule of vLLM's Transformers backend (`recursive_replace` in its transformers/base.py).

    The model without its head is made from the config; every child that is an `nn.Linear` is
    replaced by a layer of its own, every other one is entered; every tensor of the file has to be a
    parameter of the result, and every parameter in the file.
    """
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with torch.device("meta"):
        served = transformers.AutoModel.from_config(config, trust_remote_code=True)
    assert served.is_backend_compatible()
    replace_linear_layers(served)
    assert not any(isinstance(layer, torch.nn.Linear) for layer in served.modules())
    assert sum(isinstance(layer, Replaced) for layer in served.modules()) == 14 + 3 * len(LAYERS)
    stored = load_file(folder / "model.safetensors")
    assert {f"model.{name}" for name, _ in served.named_parameters()} == set(stored) - {
        "lm_head.weight"
    }
    with torch.device("cpu"):  # vLLM keeps buffers, such as RoPE's frequencies, off "meta"
        served = transformers.AutoModel.from_config(config, trust_remote_code=True).eval()
    replace_linear_layers(served)
    with torch.no_grad():
        for name, parameter in served.named_parameters():
            parameter.copy_(torch.tensor(stored[f"model.{name}"]))
        torch.testing.assert_close(
            served(IDS).last_hidden_state, model.model(IDS).last_hidden_state
        )


def test_pytorch_has_the_routers_that_exports_name():
    assert set(modeling_goat.ROUTERS) == set(ROUTERS)
