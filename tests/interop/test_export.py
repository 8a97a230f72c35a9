"""Runs in other people's formats, reloaded with their own libraries."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.methods import METHODS
from goat_jax.errors import UserError
from goat_jax.interop.export_run import export_run
from goat_jax.interop.folders import ABOUT, ADAPTER, ADAPTER_CONFIG
from goat_jax.nn.dense import merge_model
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.trainer import begin
from trained import trained_elsewhere

torch = pytest.importorskip("torch", reason="needs the extra 'test', which brings torch")
peft = pytest.importorskip("peft", reason="needs the extra 'test', which brings peft")
transformers = pytest.importorskip("transformers")

# PEFT 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

CLOSE = 1e-5
SINGLE = [name for name, row in METHODS.items() if row.spec.router.mergeable and name != "full"]
ROUTED = [name for name, row in METHODS.items() if not row.spec.router.mergeable]
OPTIONS = {
    "multilora": {"total_rank": 6},
    "neat": {"total_rank": 4, "options": {"depth": 1}},
    "adalora": {"total_rank": 6, "options": {"target_rank": 3}},
    "lora_dash": {"options": {"change_step": 5, "num_directions": 2}},
    "kasa": {"total_rank": 4},
    "full": {"total_rank": 1},
}


def tiers(*in_ci):
    """All methods without a router: some by name in CI, the others at night."""
    night = pytest.mark.nightly
    return [pytest.param(name, marks=() if name in in_ci else night) for name in SINGLE]


TASK_IDS = {"moelora": "label"}
"""Methods that go by tasks -> a column that can stand for them."""


@pytest.fixture(scope="module")
def run_of(config, two_modules, tmp_path_factory):
    """(method, options) -> the folder of a run at step 0 of that method, whose arrays moved.

    PiSSA and rsLoRA adapt every kind of module, the others two.
    """
    made = {}

    def run(method, **options):
        key = (method, repr(options))
        if key not in made:
            own = {"total_rank": 4, "dropout": 0.0} | OPTIONS.get(method, {}) | options
            if METHODS[method].spec.num_experts > 1 and "total_rank" not in options:
                own |= {"total_rank": 2 * METHODS[method].spec.num_experts}
            base = config if method in ("pissa", "rslora") else two_modules
            whole = dataclasses.replace(
                base,
                model=dataclasses.replace(base.model, options={}),
                adapter=dataclasses.replace(base.adapter, method=method, **own),
                task=dataclasses.replace(base.task, task_id=TASK_IDS.get(method)),
                out=str(tmp_path_factory.mktemp(method) / "run"),
            )
            made[key] = begin(whole, trained_elsewhere).folder
        return made[key]

    return run


def batch(vocabulary=21):
    rng = np.random.default_rng(0)
    ids = rng.integers(4, vocabulary, (5, 9)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 6:] = mask[3, 4:] = 0
    return ids, mask


def our_logits(folder, task=None):
    run = restore_run(folder, None)
    model = merge_model(run.setup.graph, run.state.trainable, run.state.frozen(run.setup.base))
    ids, mask = batch()
    ctx = EVAL if task is None else Context(task_ids=jnp.full(len(ids), task))
    return np.asarray(model(jnp.asarray(ids), jnp.asarray(mask), jnp.zeros_like(ids), ctx=ctx))


def torch_logits(model, **more):
    ids, mask = (torch.tensor(array.astype(np.int64)) for array in batch())
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask, **more).logits.numpy()


def torch_base(folder):
    auto = transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(folder, num_labels=2)


def with_peft(tiny, out):
    """Logits of PEFT's own reload of an exported folder, and those of the base alone."""
    base = torch_base(tiny / "model")
    before = torch_logits(base)
    return torch_logits(peft.PeftModel.from_pretrained(base, out)), before


# One method for every kind of file: LoRA, DoRA and a network. The numbers of all methods are those
# of test_low_rank.py.
@pytest.mark.parametrize("method", tiers("pissa", "dora", "neat"))
def test_peft_reloads_every_single_adapter(method, run_of, tiny, tmp_path):
    run = run_of(method)
    made = export_run(run, "peft", tmp_path / "out")
    theirs, before = with_peft(tiny, tmp_path / "out")
    assert np.abs(theirs - our_logits(run)).max() < CLOSE
    assert np.abs(theirs - before).max() > 1e-2
    assert {"loss", "accuracy"} <= set(made.scores["run"])
    first, *_, last = repr(made).splitlines()  # as a REPL prints it
    assert first.split()[-1] == "run" and last == f"step {made.step} written to {made.folder}"
    assert last in made._repr_html_()


def test_residual_methods_are_lora_of_twice_the_rank_on_the_original(run_of, tmp_path):
    export_run(run_of("pissa"), "peft", tmp_path / "out")
    config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (8, 8, False)
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    short = ["query", "key", "value", "output.dense", "intermediate.dense"]
    assert config["target_modules"] == short
    tensors = load_file(tmp_path / "out" / ADAPTER)
    name = "base_model.model.bert.encoder.layer.1.attention.self.key.lora_A.weight"
    assert tensors[name].shape == (8, 32)


def test_dora_has_peft_s_own_fields_and_its_factors_bit_for_bit(run_of, tmp_path):
    run = run_of("dora")
    export_run(run, "peft", tmp_path / "out")
    config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
    assert config["use_dora"] and (config["r"], config["lora_alpha"]) == (4, 16)
    tensors = load_file(tmp_path / "out" / ADAPTER)
    opened = restore_run(run, None)
    own = opened.state.trainable["adapter"]["layers"]["runs"][0]["query"]["adapter"]
    module = "base_model.model.bert.encoder.layer.1.attention.self.query."
    for name, key in (("lora_A.weight", "a"), ("lora_B.weight", "b")):
        np.testing.assert_array_equal(tensors[module + name], np.asarray(own[key][1, 0]).T)
    name = module + "lora_magnitude_vector"
    np.testing.assert_array_equal(tensors[name], np.asarray(own["magnitude"][1]))


def test_ranks_and_alphas_that_differ_become_patterns(run_of, tiny, tmp_path):
    from goat_jax.injection.selection import Override

    run = run_of("rslora", overrides=(Override(("query",), {"total_rank": 2, "alpha": 5.0}),))
    export_run(run, "peft", tmp_path / "out")
    config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
    assert config["use_rslora"] and config["r"] == 4 and config["lora_alpha"] == 16
    layers = [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]
    assert config["rank_pattern"] == dict.fromkeys(layers, 2)
    assert config["alpha_pattern"] == dict.fromkeys(layers, 5)
    assert np.abs(with_peft(tiny, tmp_path / "out")[0] - our_logits(run)).max() < CLOSE


def changed_run(run, folder, **fields):
    """A folder with the config of a run, and nothing else, after a change of some fields."""
    saved = json.loads((run / "run.json").read_text())
    saved["config"] |= fields
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(saved))
    return folder


@pytest.mark.parametrize("method", ROUTED)
def test_routed_adapters_are_refused_where_no_kernel_equals_them(method, run_of, tmp_path):
    """The config alone decides this, before anything is loaded."""
    sizes = {"adapter.total_rank": 2 * METHODS[method].spec.num_experts}
    run = changed_run(run_of("pissa"), tmp_path / "run", **sizes, **{"adapter.method": method})
    with pytest.raises(UserError, match=r"weights the experts .* --to peft keep it"):
        export_run(run, "merged", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


EXACT = [name for name in ROUTED if name != "full_moe"]


# The numbers of all methods are those of tests/torch/test_experts.py.
@pytest.mark.parametrize(
    "method", [pytest.param(n, marks=() if n == "goat" else pytest.mark.nightly) for n in EXACT]
)
def test_routed_experts_are_exact_in_peft(method, run_of, tiny, tmp_path):
    goat_torch = pytest.importorskip("goat_jax.torch")
    run, task = run_of(method), 1 if method in TASK_IDS else None
    export_run(run, "peft", tmp_path / "out")
    base = torch_base(tiny / "model")
    before = torch_logits(base)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "out", is_trainable=True)
    more = {} if task is None else {"tasks": torch.full((5,), task)}
    exact = torch_logits(model, **more)
    assert np.abs(exact - our_logits(run, task)).max() < CLOSE
    assert np.abs(exact - before).max() > 1e-2
    with model.disable_adapter():
        head = model.base_model.model.classifier  # is the adapter's own, or the base's
        assert head.active_adapters == ["default"] and np.allclose(torch_logits(model), before)
    model.load_adapter(tmp_path / "out", "twin")
    with torch.no_grad():
        for name, array in model.named_parameters():
            if ".goat_experts.twin.expert_b.weight" in name:
                array.mul_(2.0)
    np.testing.assert_array_equal(torch_logits(model, **more), exact)
    model.set_adapter("twin")
    assert np.abs(torch_logits(model, **more) - exact).max() > 1e-3
    model.set_adapter("default")
    # Trained on in torch, the start stays; saved and read again, it is the same to the bit.
    frozen = {name: array.clone() for name, array in model.named_buffers()}
    ids, mask = (torch.tensor(array.astype(np.int64)) for array in batch())
    found = model.train()(input_ids=ids, attention_mask=mask, labels=torch.ones(5).long(), **more)
    (found.loss + goat_torch.aux_loss(model)).backward()
    trained = [array for name, array in model.named_parameters() if array.requires_grad]
    assert trained and all(array.grad is not None for array in trained)
    torch.optim.SGD(trained, 0.1).step()
    moved = torch_logits(model, **more)
    assert np.abs(moved - exact).max() > 1e-4
    assert all(torch.equal(array, frozen[name]) for name, array in model.named_buffers())
    model.save_pretrained(tmp_path / "again", selected_adapters=["default"])
    again = peft.PeftModel.from_pretrained(torch_base(tiny / "model"), tmp_path / "again")
    np.testing.assert_array_equal(torch_logits(again, **more), moved)
    with pytest.raises(ValueError, match="no single weight equals this adapter"):
        again.merge_and_unload()
    other = torch_base(tiny / "model")
    with torch.no_grad():
        for name, array in other.named_parameters():
            array.mul_(1.01 if name.endswith(".weight") else 1.0)
    with pytest.raises(ValueError, match=r"whose weights differ from these by 1\.0%"):
        peft.PeftModel.from_pretrained(other, tmp_path / "again")


@pytest.mark.parametrize(
    "method", [pytest.param(n, marks=() if n == "goat" else pytest.mark.nightly) for n in EXACT]
)
def test_routed_experts_are_exact_in_a_folder_with_its_code(method, run_of, tmp_path):
    run, task = run_of(method), 1 if method in TASK_IDS else None
    out = tmp_path / "out"
    export_run(run, "transformers", out, shard_bytes=20_000)
    auto = transformers.AutoModelForSequenceClassification
    with pytest.raises(ValueError, match="trust_remote_code"):
        auto.from_pretrained(out)
    model, report = auto.from_pretrained(out, trust_remote_code=True, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    more = {} if task is None else {"tasks": torch.full((5,), task)}
    exact = torch_logits(model, **more)
    assert np.abs(exact - our_logits(run, task)).max() < CLOSE
    card = (out / "README.md").read_text()
    assert "**This folder holds Python code" in card and "trust_remote_code=True)" in card
    code = {path.name for path in out.glob("*.py")}
    assert code == {"modeling_goat.py"}


@pytest.mark.parametrize(
    "method",
    [
        "goat",
        # The factors of every method are those of test_low_rank.py.
        pytest.param("hydralora", marks=pytest.mark.nightly),
        pytest.param("molora", marks=pytest.mark.nightly),
    ],
)
def test_one_plain_lora_with_mean_gates(method, run_of, tiny, tmp_path):
    """PEFT computes the loss that was measured, and the loss of quality is kept."""
    run = run_of(method)
    made = export_run(run, "lora", tmp_path / "out", rows=32, gates="mean")
    kept = json.loads((tmp_path / "out" / ABOUT).read_text())
    assert kept["scores"] == made.scores
    change = made.scores["approximation"]["loss"] - made.scores["run"]["loss"]
    assert made.scores["change"]["loss"] == pytest.approx(change)
    gates = np.array(list(kept["gates"].values()))
    np.testing.assert_allclose(gates.sum(1), 1.0, rtol=1e-5)
    assert "measured on 32 training rows" in (tmp_path / "out" / "README.md").read_text()
    config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
    spec = METHODS[method].spec
    ranks = {"goat": 32, "molora": 16, "hydralora": 2}
    assert config["r"] == ranks[method] and spec.num_experts > 1
    theirs, before = with_peft(tiny, tmp_path / "out")
    assert np.abs(theirs - before).max() > 1e-2
    loss = _loss_in_peft(tiny, tmp_path / "out")
    assert loss == pytest.approx(made.scores["approximation"]["loss"], abs=1e-4)


def test_one_plain_lora_of_lower_rank_with_the_better_gates(run_of, tiny, tmp_path):
    made = export_run(run_of("goat"), "lora", tmp_path / "out", rows=32, rank=5)
    config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
    assert config["r"] == 5
    other = next(name for name in made.scores if name.startswith("with "))
    assert made.scores["approximation"]["loss"] < made.scores[other]["loss"]
    loss = _loss_in_peft(tiny, tmp_path / "out")
    assert loss == pytest.approx(made.scores["approximation"]["loss"], abs=1e-4)


def test_one_task_of_a_task_gated_adapter_is_a_lora(run_of, tiny, tmp_path):
    run = run_of("moelora")
    export_run(run, "peft", tmp_path / "out", task=1)
    theirs, _ = with_peft(tiny, tmp_path / "out")
    assert np.abs(theirs - our_logits(run, 1)).max() < CLOSE
    assert np.abs(theirs - our_logits(run, 0)).max() > 1e-3


def _loss_in_peft(tiny, out):
    """The loss of PEFT's reload on the evaluation rows."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "model")
    rows = [json.loads(line) for line in (tiny / "test.jsonl").read_text().splitlines()]
    model = peft.PeftModel.from_pretrained(torch_base(tiny / "model"), out).eval()
    encoded = tokenizer(
        [row["sentence"] for row in rows],
        padding=True,
        truncation=True,
        max_length=24,
        return_tensors="pt",
    )
    labels = torch.tensor([row["label"] for row in rows])
    with torch.no_grad():
        return float(model(**encoded, labels=labels).loss)


def test_published_names_bit_for_bit(run_of, tmp_path):
    run = run_of("goat")
    export_run(run, "goat", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / ADAPTER)
    own = restore_run(run, None).state.trainable["adapter"]["layers"]["runs"][0]["up"]["adapter"]
    module = "bert.encoder.layer.1.intermediate.dense."
    for expert in range(8):
        for name, key in (("lora_A", "a"), ("lora_B", "b")):
            theirs = tensors[f"{module}{name}.{expert}.weight"]
            np.testing.assert_array_equal(theirs, np.asarray(own[key][1, expert]).T)
    np.testing.assert_array_equal(
        tensors[module + "lora_gating.weight"], np.asarray(own["router"][1]).T
    )
    assert "classifier.weight" in tensors


# Every method's merge is tested in adapters/test_contract.py.
@pytest.mark.parametrize(
    "method",
    [*tiers("pissa"), pytest.param("full", marks=pytest.mark.nightly)],
)
def test_merged_models_are_transformers_own(method, run_of, tmp_path):
    run = run_of(method)
    export_run(run, "merged", tmp_path / "out", shard_bytes=20_000)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    auto = transformers.AutoModelForSequenceClassification
    model, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert np.abs(torch_logits(model) - our_logits(run)).max() < CLOSE
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("bright film")
    assert len(words["input_ids"]) == 4


@pytest.mark.nightly
def test_whole_kernels_have_no_form_in_peft(run_of, tmp_path):
    with pytest.raises(UserError, match="not of low rank"):
        export_run(run_of("full"), "peft", tmp_path / "out")


def test_the_card_tells_what_it_is(run_of, tmp_path):
    export_run(run_of("pissa"), "peft", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for word in ("library_name: peft", "`pissa`", "learning_rate", "accuracy"):
        assert word in card, word


def test_nothing_is_half_written(run_of, tmp_path):
    run = run_of("pissa")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_run(run, "peft", taken)
    with pytest.raises(UserError, match="cannot be written"):
        export_run(run, "peft", taken / "file" / "out")
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        export_run(run, "peft", tmp_path / "out", step=7)
    with pytest.raises(UserError, match="has no router to approximate"):
        export_run(run, "lora", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_run_on_a_quantised_base_stays_here(run_of, tmp_path):
    run = changed_run(run_of("pissa"), tmp_path / "run", **{"model.quantize": "nf4"})
    with pytest.raises(
        UserError, match="trained on a base model in nf4: only runs on an unquantized"
    ):
        export_run(run, "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()
