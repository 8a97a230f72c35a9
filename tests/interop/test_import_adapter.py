"""Adapters of others as runs: from PEFT's own files and from the published code's names."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import goat_jax
from goat_jax.cli.main import main
from goat_jax.cli.verbs.import_adapter import import_adapter
from goat_jax.errors import UserError
from goat_jax.interop.export_run import export_run
from goat_jax.interop.folders import ABOUT, ADAPTER, ADAPTER_CONFIG
from goat_jax.interop.import_adapter import Imported, base_note, check_samples, check_weights
from goat_jax.models.registry import architecture_of
from goat_jax.nn.dense import merge_model
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.trainer import begin
from goat_jax.validation.base_samples import places

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TARGETS = r".*\.(query|value|intermediate\.dense)"
KINDS = {
    "lora": lambda: peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=TARGETS),
    "patterns": lambda: peft.LoraConfig(
        r=3, rank_pattern={"query": 2}, alpha_pattern={"query": 7}, target_modules=TARGETS
    ),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True, target_modules=TARGETS),
    "pissa": lambda: peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=TARGETS),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=3, total_step=10, target_modules=TARGETS
    ),
    "peanut": lambda: peft.PeanutConfig(r=4, depth=2, act_fn="silu", target_modules=TARGETS),
}


def peft_folder(tiny, out, kind):
    """A PEFT adapter with random factors and a random head, saved by PEFT; the model's logits."""
    torch.manual_seed(0)
    auto = transformers.AutoModelForSequenceClassification
    base = auto.from_pretrained(tiny / "model", num_labels=2)
    config = KINDS[kind]()
    config.modules_to_save = ["classifier"]
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 0.1 if "original_module" not in name else 0.0
                parameter.add_(scale * torch.randn_like(parameter))
        if kind == "adalora":
            prune(model)
        ids = torch.arange(4, 19).reshape(3, 5)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.numpy()
    model.save_pretrained(out)
    return logits


def prune(model):
    """Writes the file as AdaLoRA's allocator does: without ranks of singular value zero."""
    kept = {"query": [True, False, True, True], "value": [False, False, True, False]}
    pattern = {}
    for name, parameter in model.base_model.model.named_parameters():
        if name.endswith("lora_E.default"):
            mask = kept.get(name.split(".")[-3], [True] * 4)
            parameter[~torch.tensor(mask)] = 0.0
            pattern[name] = mask
    model.peft_config["default"].rank_pattern = pattern


def our_logits(folder):
    run = restore_run(folder, None)
    model = merge_model(run.setup.graph, run.state.trainable, run.state.frozen(run.setup.base))
    return logits_of(model, np.arange(4, 19).reshape(3, 5))


def logits_of(model, ids):
    ids = np.asarray(ids, np.int32)
    return np.asarray(model(ids, np.ones_like(ids), np.zeros_like(ids)))


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """The tiny config with transformers' own pooling."""
    path = tmp_path_factory.mktemp("plain") / "config.py"
    text = (tiny / "config.py").read_text().replace('options={"pooling": "mean"}', "options={}")
    path.write_text(text)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        # Plain LoRA is read again below, with other names and another base; the numbers of the
        # other methods' layers are those of test_peft.py.
        pytest.param(kind, marks=() if kind in ("patterns", "adalora") else pytest.mark.nightly)
        for kind in KINDS
    ],
)
def test_peft_s_own_folder_computes_the_same_here(kind, tiny, plain, tmp_path, capsys):
    logits = peft_folder(tiny, tmp_path / "peft", kind)
    out = tmp_path / "run"
    assert main(["import", str(tmp_path / "peft"), "--config", plain, "--out", str(out)]) == 0
    assert "step 0 written" in capsys.readouterr().out
    assert np.abs(our_logits(out) - logits).max() < 1e-5
    # The imported adapter is a run like any other: it predicts as a trained one does.
    run = goat_jax.load(out)
    found = run.predict(["the film is warm", "the film is cold"])
    assert run.step == 0 and set(found.labels) <= {"bad", "good"}
    ids = [[2, 14, 15, 16, 6, 3], [2, 14, 15, 16, 11, 3]]
    shares = np.asarray(jax.nn.softmax(logits_of(run.trained.model, ids)))
    np.testing.assert_allclose(found.probabilities, shares, atol=1e-5)


@pytest.mark.slow
def test_an_adapter_of_a_bare_model_and_of_another_base(tiny, plain, tmp_path, capsys):
    """Names without the model's prefix, a head of another task, another base in the config."""
    logits = peft_folder(tiny, tmp_path / "peft", "lora")
    path = tmp_path / "peft" / ADAPTER
    long, short = "base_model.model.bert.", "base_model.model."
    tensors = {name.replace(long, short): value for name, value in load_file(path).items()}
    assert f"{short}encoder.layer.0.attention.self.query.lora_A.weight" in tensors
    save_file(tensors | {f"{short}qa_outputs.weight": np.zeros((2, 32), np.float32)}, path)
    config = tmp_path / "peft" / ADAPTER_CONFIG
    changes = {"base_model_name_or_path": "somebody/bert-large", "revision": "v2"}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    import_adapter(tmp_path / "peft", plain, ["--out", str(tmp_path / "run")])
    said = capsys.readouterr().err.splitlines()
    assert any("qa_outputs.weight left out" in line for line in said)
    (warning,) = (line for line in said if line.startswith("warning:"))
    assert "was trained on somebody/bert-large at revision v2, the model here is" in warning
    assert "--other-base" in warning
    assert np.abs(our_logits(tmp_path / "run") - logits).max() < 1e-5


@pytest.mark.parametrize(
    ("base", "revision", "path", "warned"),
    [
        ("FacebookAI/roberta-large", None, "roberta-large", False),
        ("FacebookAI/roberta-large", "main", "models/roberta-large/", False),
        ("FacebookAI/roberta-large", "abc", "roberta-large", True),
        ("roberta-base", None, "roberta-large", True),
        ("sentence-transformers/all-MiniLM-L6-v2", None, "package:minilm", False),
        ("package:minilm", None, "sentence-transformers/all-MiniLM-L6-v2", False),
        (None, None, "roberta-large", False),
    ],
)
def test_which_bases_are_another(base, revision, path, warned):
    adapter = Imported("peft", base, None, {}, True, (), {}, {}, revision)
    assert (base_note(adapter, path) is not None) == warned
    known = dataclasses.replace(adapter, base_sha256="0" * 64)
    assert base_note(known, path) is None
    with pytest.raises(UserError, match="--other-base if this is intended"):
        check_weights(known, "1" * 64)
    check_weights(known, "1" * 64, meant=True)


def test_samples_of_another_base_s_weights_are_refused():
    weight = np.random.default_rng(0).standard_normal((6, 10), np.float32)
    samples = {"bert.encoder.up": np.array([weight[place] for place in places(6, 10)])}
    adapter = Imported("peft", "theirs", None, {}, True, (), {}, {}, base_samples=samples)
    bert = architecture_of({"model_type": "bert"}, Path("."))
    for name in ("encoder.up.weight", "bert.encoder.up.weight"):
        check_samples(adapter, {name: weight}, bert)
        with pytest.raises(UserError, match=r"differ from these by 10\.0%: .*--other-base"):
            check_samples(adapter, {name: 1.1 * weight}, bert)
    assert base_note(adapter, "ours") is None


@pytest.mark.slow
def test_an_imported_adapter_is_trained_on_and_exported(tiny, plain, tmp_path):
    peft_folder(tiny, tmp_path / "peft", "lora")
    import_adapter(tmp_path / "peft", plain, ["--out", str(tmp_path / "run"), "--train.steps", "4"])
    export_run(tmp_path / "run", "peft", tmp_path / "again")
    first, second = (load_file(tmp_path / name / ADAPTER) for name in ("peft", "again"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, second[name], err_msg=name)
    assert main(["train", "--run", str(tmp_path / "run"), "--quiet"]) == 0
    run = restore_run(tmp_path / "run", 4)
    assert run.config.adapter.method == "lora" and run.step == 4


@pytest.mark.slow
def test_published_names_come_back_bit_for_bit(two_modules, plain, tmp_path):
    model = dataclasses.replace(two_modules.model, options={})
    goat = dataclasses.replace(two_modules, model=model, out=str(tmp_path / "run"))
    made = begin(goat, lambda built: built.state)
    export_run(made.folder, "goat", tmp_path / "out")
    moved = {n: t + np.float32(0.01) for n, t in load_file(tmp_path / "out" / ADAPTER).items()}
    save_file(moved, tmp_path / "bare.safetensors")
    import_adapter(tmp_path / "bare.safetensors", plain, ["--out", str(tmp_path / "new")])
    export_run(tmp_path / "new", "goat", tmp_path / "again")
    again = load_file(tmp_path / "again" / ADAPTER)
    assert again.keys() == moved.keys()
    for name, tensor in moved.items():
        np.testing.assert_array_equal(tensor, again[name], err_msg=name)
    # The folder of the tuner comes back, too; without our facts, as PyTorch saves it, its samples
    # tell that the base is the same.
    export_run(tmp_path / "new", "peft", tmp_path / "routed")
    (tmp_path / "routed" / ABOUT).unlink()
    import_adapter(tmp_path / "routed", plain, ["--out", str(tmp_path / "third")])
    export_run(tmp_path / "third", "peft", tmp_path / "routed again")
    first, second = (load_file(tmp_path / n / ADAPTER) for n in ("routed", "routed again"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("saved") / "peft"
    peft_folder(tiny, out, "lora")
    return out


def refused(folder, plain, tmp_path):
    with pytest.raises(UserError) as error:
        import_adapter(folder, plain, ["--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


CHANGES = {
    "peft_type": ("LOHA", "is a PEFT adapter of type LOHA"),
    "init_lora_weights": ("olora", "changes the base model"),
    "lora_bias": (True, "uses lora_bias"),
    "bias": ("all", "uses bias"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_settings_without_a_form_here(field, folder, plain, tmp_path):
    value, message = CHANGES[field]
    shutil.copytree(folder, tmp_path / "peft")
    path = tmp_path / "peft" / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert message in refused(tmp_path / "peft", plain, tmp_path)


NUMBERS = [
    *(("lora_alpha", text) for text in ("NaN", "Infinity", "1e999", "-3", "0", '"16"', "true")),
    *(("r", text) for text in ("NaN", "0", "-1", "2.5", '"8"')),
    *(("lora_dropout", text) for text in ("NaN", "1", "-0.1")),
    *(("alpha_pattern", text) for text in ('{"query": NaN}', '{"query": -1}', '{"(": 2}', "[1]")),
    ("rank_pattern", '{"query": "3"}'),
    ("init_lora_weights", "[1]"),
]


@pytest.mark.parametrize(("field", "text"), NUMBERS)
def test_numbers_of_a_config_that_make_no_sense(field, text, folder, plain, tmp_path):
    shutil.copytree(folder, tmp_path / "peft")
    path = tmp_path / "peft" / ADAPTER_CONFIG
    rest = {key: value for key, value in json.loads(path.read_text()).items() if key != field}
    path.write_text(json.dumps(rest)[:-1] + f', "{field}": {text}}}')
    message = refused(tmp_path / "peft", plain, tmp_path)
    assert ADAPTER_CONFIG in message or "init_lora_weights" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("ending", ["query.lora_B.weight", "classifier.weight"])
def test_tensors_that_are_not_finite(ending, value, folder, plain, tmp_path):
    shutil.copytree(folder, tmp_path / "peft")
    tensors = load_file(folder / ADAPTER)
    name = next(name for name in tensors if name.endswith(ending))
    tensors[name].flat[-1] = value
    save_file(tensors, tmp_path / "peft" / ADAPTER)
    assert f"{name} has 1 of" in refused(tmp_path / "peft", plain, tmp_path)


def test_published_tensors_that_are_not_finite(plain, tmp_path):
    gating = {"bert.encoder.layer.0.output.dense.lora_gating.weight": np.full((2, 8), np.nan)}
    save_file(gating, tmp_path / "bare.safetensors")
    assert "lora_gating.weight has 16 of 16" in refused(
        tmp_path / "bare.safetensors", plain, tmp_path
    )


def damage(tensors, name):
    module = "base_model.model.bert.encoder.layer.0.attention.self.query"
    damages = {
        "shape": {f"{module}.lora_A.weight": np.zeros((3, 5), np.float32)},
        "missing": {f"{module}.lora_A.weight": None},
        "module": {
            f"{module.replace('query', 'quary')}.lora_{ab}.weight": tensors[
                f"{module}.lora_{ab}.weight"
            ]
            for ab in "AB"
        },
        "unknown": {f"{module}.lora_X.weight": np.zeros(1, np.float32)},
    }
    return {key: value for key, value in (tensors | damages[name]).items() if value is not None}


MESSAGES = {
    "shape": "the factors of bert.encoder.layer.0.attention.self.query are",
    "missing": "has no factor a of",
    "module": "which the model does not have (did you mean",
    "unknown": "which no adapter here has a place for",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_tensors_that_do_not_fit(name, folder, plain, tmp_path):
    shutil.copytree(folder, tmp_path / "peft")
    tensors = load_file(folder / ADAPTER)
    save_file(damage(tensors, name), tmp_path / "peft" / ADAPTER)
    assert MESSAGES[name] in refused(tmp_path / "peft", plain, tmp_path)


def test_pickled_tensors_and_other_weights_are_refused(folder, plain, tmp_path):
    shutil.copytree(folder, tmp_path / "peft")
    (tmp_path / "peft" / ABOUT).write_text(json.dumps({"base_sha256": "0" * 64}))
    assert "give the model it was trained on" in refused(tmp_path / "peft", plain, tmp_path)
    (tmp_path / "peft" / ADAPTER).unlink()
    (tmp_path / "peft" / "adapter_model.bin").write_bytes(b"pickle")
    assert "only pickled weights" in refused(tmp_path / "peft", plain, tmp_path)
    assert "does not exist" in refused(tmp_path / "nothing", plain, tmp_path)
