"""The tuner in PEFT's hands: starts, several adapters, exchange, and adapters that do not fit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from goat_jax.adapters.adapter import init_adapter
from goat_jax.adapters.methods import method_spec

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
goat_torch = pytest.importorskip("goat_jax.torch")
SEGMENTS = pytest.importorskip("goat_jax.torch.config").SEGMENTS
FUNCTIONS = pytest.importorskip("goat_jax.torch.start").SEGMENTS

X = torch.linspace(-1, 1, 24).reshape(3, 8).sin()
SIZES = {"r": 1, "num_experts": 4, "target_modules": ["0"], "modules_to_save": ["2"]}
FILE = "adapter_model.safetensors"


def base():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def trained(**options):
    """A model with an adapter that is far from its start."""
    model = peft.get_peft_model(base(), goat_torch.GoatConfig(**SIZES | options))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two saved adapters of different methods, and their outputs."""
    root, outputs = tmp_path_factory.mktemp("adapters"), {}
    for name, options in (
        ("goat", {"init": "svd", "scaling": "theory"}),
        ("hydra", {"router": "softmax", "shared_a": True, "r": 2}),
    ):
        model = trained(**options)
        outputs[name] = model(X).detach()
        model.save_pretrained(root / name)
    return root, outputs


@pytest.mark.parametrize("segments", SEGMENTS)
def test_the_start_from_the_svd_is_goat_jax_s(segments):
    spec = method_spec("goat", total_rank=4, num_experts=4, segments=segments)
    config = goat_torch.GoatConfig(**SIZES, init="svd", scaling="theory", segments=segments)
    linear = base()[0]
    kernel = jnp.asarray(linear.weight.detach().numpy().T)
    ours = init_adapter(kernel, spec, jax.random.key(0))
    model = peft.get_peft_model(base(), config)
    experts = model.base_model.model[0].goat_experts["default"]
    a, b = (layer.weight.detach().numpy().T for layer in (experts.expert_a, experts.expert_b))
    products = a.T[:, :, None] * b[:, None, :]
    expected = jnp.einsum("EIR,ERO->EIO", ours.factors["a"], ours.factors["b"])
    np.testing.assert_allclose(products, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(experts.expert_scaling.numpy(), ours.scale, rtol=1e-6)
    removed = (experts.start_b @ experts.start_a).numpy().T
    np.testing.assert_allclose(kernel - removed, ours.kernel, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # a router without a preference leaves the model as it was
        experts.router.linear.weight.zero_()
        experts.router.top_k = 4
        torch.testing.assert_close(model.eval()(X), base()(X))


def test_all_segments_have_a_function():
    assert set(FUNCTIONS) == set(SEGMENTS)


def test_adapters_of_two_methods_on_one_base(folders):
    root, outputs = folders
    plain = base()
    before = plain(X).detach()
    model = peft.PeftModel.from_pretrained(plain, root / "goat", adapter_name="goat")
    model.load_adapter(root / "hydra", "hydra")
    torch.testing.assert_close(model(X), outputs["goat"], rtol=0, atol=0)
    model.set_adapter("hydra")  # with the head that it was trained with
    torch.testing.assert_close(model(X), outputs["hydra"], rtol=0, atol=0)
    with model.disable_adapter():
        torch.testing.assert_close(model(X), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="all rows of a batch have the active adapter here"):
        model(X, adapter_names=["goat", "hydra", "goat"])
    model.set_adapter("goat")
    model.delete_adapter("hydra")
    torch.testing.assert_close(model(X), outputs["goat"], rtol=0, atol=0)
    assert model.base_model.model[0].goat_experts.keys() == {"goat"}


def test_numbers_are_exchanged_under_one_name(folders, tmp_path):
    root, outputs = folders
    other = trained(init="svd", scaling="theory", rho=2.0)
    other.save_pretrained(tmp_path)
    model = peft.PeftModel.from_pretrained(base(), root / "goat")
    model.load_adapter(tmp_path, "default")
    torch.testing.assert_close(model(X), other(X), rtol=0, atol=0)
    assert (model(X) - outputs["goat"]).abs().max() > 1e-3


def broken(folder, out, change):
    """A copy of an adapter with changed tensors; `change` returns fields of its config."""
    tensors = load_file(folder / FILE)
    fields = change(tensors) or {}
    config = json.loads((folder / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config | fields))
    save_file(tensors, out / FILE)
    return out


NAME = "base_model.model.0.goat_experts.router.linear.weight"
BROKEN = {
    "missing": (lambda t: t.__delitem__(NAME), "the file has no .*router.linear.weight"),
    "not finite": (lambda t: t[NAME].fill(np.nan), "router.linear.weight is not finite"),
    "rank": (lambda t: {"r": 2}, r"start_a is \(4, 8\) in the file, and \(8, 8\)"),
    "experts": (lambda t: {"num_experts": 3}, r"scaling is \(4,\) in the file, and \(3,\)"),
    "integers": (
        lambda t: t.update({NAME: t[NAME].astype(np.int8)}),
        "router.linear.weight is stored as torch.int8: save it in float32",
    ),
    "rank that is no number": (lambda t: {"r": "1"}, "r is '1': give a number from 1 on"),
    "top_k": (lambda t: {"top_k": 5}, "top_k is 5, and there are 4 experts to choose"),
    "options": (lambda t: {"router_options": {"q": 1}}, r"'top_k' has no such options: {'q': 1}"),
    "router": (lambda t: {"router": "expert_choice"}, "router 'expert_choice' is unknown: one of"),
    "elsewhere": (
        lambda t: t.update({NAME.replace(".0.", ".5."): t[NAME]}),
        "has .*5.goat_experts.* and this base model no such adapter",
    ),
}


@pytest.mark.parametrize("change, message", BROKEN.values(), ids=BROKEN)
def test_an_adapter_that_does_not_fit_is_refused_whole(change, message, folders, tmp_path):
    root, outputs = folders
    out = broken(root / "goat", tmp_path, change)
    plain = base()
    with pytest.raises(ValueError, match=message) as error:
        peft.PeftModel.from_pretrained(plain, out)
    assert "\n" not in str(error.value)
    assert type(plain[0]) is torch.nn.Linear
    model = peft.PeftModel.from_pretrained(base(), root / "goat")
    with pytest.raises(ValueError, match=message):
        model.load_adapter(out, "other")
    assert set(model.peft_config) == {"default"}
    torch.testing.assert_close(model(X), outputs["goat"], rtol=0, atol=0)


def test_another_base_of_these_shapes_is_refused_unless_meant(folders, tmp_path):
    root, outputs = folders
    other = base()
    with torch.no_grad():
        other[0].weight.add_(0.02 * torch.randn_like(other[0].weight))
    message = r"trained on another base model, .* differ from these by \d+\.\d%: .*set other_base"
    with pytest.raises(ValueError, match=message) as error:
        peft.PeftModel.from_pretrained(other, root / "goat")
    assert "\n" not in str(error.value) and type(other[0]) is torch.nn.Linear
    model = peft.PeftModel.from_pretrained(other, root / "goat", other_base=True)
    assert (model(X) - outputs["goat"]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="trained on another base model"):
        model.load_adapter(root / "hydra", "hydra")
    meant = broken(root / "goat", tmp_path, lambda t: {"other_base": True})
    model.load_adapter(meant, "meant")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_the_base_is_known_in_another_dtype_and_not_asked_if_quantized(dtype, folders):
    known = base()
    weight = known[0].weight.to(dtype)
    known[0].weight = torch.nn.Parameter(weight, requires_grad=False)
    model = peft.PeftModel.from_pretrained(known, folders[0] / "goat")
    sample = model.base_model.model[0].base_sample()
    assert sample.any() == dtype.is_floating_point


def test_a_file_without_samples_of_its_base_is_loaded(folders, tmp_path):
    name = NAME.replace("router.linear.weight", "base_sample")
    old = broken(folders[0] / "goat", tmp_path, lambda t: t.__delitem__(name))
    peft.PeftModel.from_pretrained(base(), old)


def test_an_adapter_in_half_precision_is_loaded_with_a_warning(folders, tmp_path):
    half = broken(
        folders[0] / "goat",
        tmp_path,
        lambda t: t.update({name: array.astype(np.float16) for name, array in t.items()}),
    )
    with pytest.warns(UserWarning, match="'default' is stored in torch.float16: its outputs are"):
        peft.PeftModel.from_pretrained(base(), half)


def test_a_base_of_other_shapes_is_refused(folders):
    other = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"start_b is \(8, 4\) in the file, and \(6, 4\)"):
        peft.PeftModel.from_pretrained(other, folders[0] / "goat")


def test_new_adapters_that_cannot_be_made_are_refused():
    for options, message in (
        ({"init": "pissa"}, "init 'pissa' is unknown: one of zero, svd"),
        ({"init": "svd", "shared_a": True}, "set shared_a=False"),
        ({"init": "svd", "r": 3}, r"needs 4 \* 3 singular values, and .* has 8"),
        ({"scaling": "alpha"}, "scaling 'alpha' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            peft.get_peft_model(base(), goat_torch.GoatConfig(**SIZES | options))
