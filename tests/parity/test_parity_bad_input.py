"""Bundles that cannot be read: one line that names the file and the key."""

import io
import json
import shutil

import numpy as np
import pytest

from goat_jax.errors import UserError
from goat_jax.parity.bundle import LAYERS, METHODS, MODEL, find_bundles, read_npz
from goat_jax.parity.model_bundle import read_run
from goat_jax.parity.report import main, replay, run_parity
from kinds import write_npz


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, make_layer_case, write_layers):
    return write_layers(tmp_path_factory.mktemp("sound"), [make_layer_case("one", tokens=5)])


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "changed")


def refusal(folder) -> str:
    with pytest.raises(UserError) as caught:
        main([folder])
    text = str(caught.value)
    assert "\n" not in text
    return text


def rewrite(folder, **changes):
    path = folder / "layer_one.npz"
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: np.array(file[key]) for key in file.files} | changes
    kept = {key: value for key, value in arrays.items() if value is not None}
    write_npz(path, kept)


@pytest.mark.parametrize("name", ["W0", "bias", "router0", "grad_router", "adamw_losses"])
def test_a_missing_array_is_named(name, copy):
    rewrite(copy, **{name: None})
    assert f"layer_one.npz lacks the array '{name}'" in refusal(copy)


def test_all_missing_arrays_are_named_at_once(copy):
    rewrite(copy, W0=None, y=None, grad_A=None)
    assert "lacks the arrays 'W0', 'y', 'grad_A'" in refusal(copy)


def test_a_wrong_shape_is_named(copy):
    rewrite(copy, A0=np.zeros((4, 2, 39), np.float32))
    assert "layer_one.npz: A0 has shape (4, 2, 39), not (4, 2, 40)" in refusal(copy)


def test_text_in_place_of_numbers_is_named(copy):
    rewrite(copy, y=np.array(["a"]))
    assert "layer_one.npz: y holds <U1, not numbers" in refusal(copy)


def test_pickled_arrays_are_not_opened(copy):
    rewrite(copy, y=np.array([{"a": 1}], dtype=object))
    assert "layer_one.npz cannot be read as npz" in refusal(copy)


@pytest.mark.parametrize("keep", [0, 1, 100, 3000])
def test_a_file_cut_short_is_named(keep, copy):
    path = copy / "layer_one.npz"
    path.write_bytes(path.read_bytes()[:keep])
    assert "layer_one.npz cannot be read as npz" in refusal(copy)


def test_damage_inside_a_file_is_named(copy):
    path = copy / "layer_one.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    assert "layer_one.npz cannot be read as npz (Bad CRC-32" in refusal(copy)


def test_a_bare_array_is_no_bundle_file(copy):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (copy / "layer_one.npz").write_bytes(buffer.getvalue())
    assert "layer_one.npz holds a single array" in refusal(copy)


def test_a_missing_file_is_named(copy):
    (copy / "layer_one.npz").unlink()
    assert "layer_one.npz is missing" in refusal(copy)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rank": None}, "layers.json: one lacks 'rank'"),
        ({"rank": "8"}, "rank is '8', not a whole number"),
        ({"rank": 0}, "rank is 0, not a whole number of at least 1"),
        ({"top_k": 5}, "layers.json: one: top_k 5 is not in 1..4"),
        ({"scaling": [1.0]}, "scaling is [1.0], not a finite number or 4 of them"),
        ({"init_type": "goatt"}, "init_type 'goatt' is not known (did you mean 'goat'?)"),
        ({"init_type": "milora", "rank": 10}, "rank 10 does not divide among 4 experts"),
        ({"adamw": {"lr": 0.1}}, "one: adamw lacks 'betas'"),
        ({"adamw": 3}, "one: adamw holds a int, not an object"),
        ({"alpha": float("nan")}, "alpha is nan, not a finite number"),
        ({"rank": 44}, "total rank 44 is above the layer's smaller side 40"),
    ],
)
def test_a_wrong_setting_is_named(change, text, copy):
    case = json.loads((copy / LAYERS).read_text())[0] | change
    case = {key: value for key, value in case.items() if value is not None}
    (copy / LAYERS).write_text(json.dumps([case]))
    if case.get("rank") == 44:
        rewrite(copy, A0=np.zeros((4, 11, 40)), B0=np.zeros((4, 48, 11)),
                grad_A=np.zeros((4, 11, 40)), grad_B=np.zeros((4, 48, 11)))  # fmt: skip
    assert text in refusal(copy)


@pytest.mark.parametrize("text", ["", "[", "{}", "[]", "[3]", '[{"rank": 3}]', "\udcff"])
def test_a_broken_layers_json_is_named(text, tmp_path):
    (tmp_path / LAYERS).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert LAYERS in refusal(tmp_path)


def test_two_cases_of_one_name_are_refused(copy):
    case = json.loads((copy / LAYERS).read_text())[0]
    (copy / LAYERS).write_text(json.dumps([case, case]))
    assert "two cases named 'one'" in refusal(copy)


def test_no_bundle_is_an_error_never_a_success(tmp_path):
    assert "has no parity bundle" in refusal(tmp_path)
    assert "is missing" in refusal(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(tmp_path / "file")
    with pytest.raises(UserError, match="no folder is given"):
        main([])


def test_only_cases_of_other_methods_are_nothing_to_compare(tmp_path):
    (tmp_path / METHODS).write_text("[]")
    assert "is not a list of cases" in refusal(tmp_path)


def test_a_parent_stands_for_all_bundles_below_it_once(tmp_path):
    for folder, marker in (("b/deep", MODEL), ("a", LAYERS), ("", LAYERS), ("c", METHODS)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / marker).write_text("[]")
    found = find_bundles([tmp_path, tmp_path / "a"])
    assert len(found) == 4
    assert {(one.folder.name, one.marker) for one in found if one.folder != tmp_path} == {
        ("a", LAYERS), ("deep", MODEL), ("c", METHODS)
    }  # fmt: skip


def test_a_broken_bundle_does_not_stop_the_others(copy, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MODEL).write_text("{}")
    report = replay([tmp_path])
    assert report.exit_code == 2
    assert report.checks and not report.failed
    assert len(report.errors) == 1
    assert "broken/meta.json lacks 'init_type', 'rank', " in report.errors[0]  # all at once
    with pytest.raises(UserError, match="'steps', 'lr'"):
        run_parity([tmp_path])


@pytest.fixture
def model_copy(shared, tmp_path):
    return shutil.copytree(
        shared / "golden" / "tiny_roberta", tmp_path / "run", copy_function=copy_writable
    )


def copy_writable(source, target):
    shutil.copyfile(source, target)


@pytest.mark.parametrize(
    "name",
    ["adapter_init.safetensors", "adapter_final.safetensors", "batches.npz", "expected.npz"],
)
def test_files_of_a_model_run_cut_short_or_absent_are_named(name, model_copy):
    path = model_copy / name
    path.write_bytes(path.read_bytes()[:500])
    assert name in refusal(model_copy)
    path.unlink()
    assert f"{name} is missing" in refusal(model_copy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_broken_model_is_named(name, model_copy):
    path = model_copy / name
    path.write_bytes(path.read_bytes()[:500])
    assert name in refusal(model_copy)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"modules": []}, "modules is empty"),
        ({"modules": ["roberta.encoder.layer.0.nothing"]}, "is not among the modules"),
        ({"schedule": "polynomial"}, "schedule 'polynomial' does not begin with one of"),
        ({"warmup": 31}, "warmup 31 is longer than the 30 steps"),
        ({"steps": 31}, "batches.npz lacks the array"),
        ({"steps": 29}, "task_loss has shape (30,), not (29,)"),
        ({"train_extra": ["score"]}, "has no tensor of 'score'"),
        ({"trainable_params": None}, "lacks 'trainable_params'"),
        ({"num_experts": 4}, "has shape (2, 64), not (4, 64)"),
    ],
)
def test_a_wrong_setting_of_a_model_run_is_named(change, text, model_copy):
    meta = json.loads((model_copy / MODEL).read_text()) | change
    meta = {key: value for key, value in meta.items() if value is not None}
    (model_copy / MODEL).write_text(json.dumps(meta))
    assert text in refusal(model_copy)


def test_an_unsupported_model_is_named(model_copy):
    config = json.loads((model_copy / "config.json").read_text())
    (model_copy / "config.json").write_text(json.dumps(config | {"model_type": "funnel"}))
    assert "'funnel'" in refusal(model_copy)


def test_labels_that_are_no_classes_are_refused(model_copy):
    with np.load(model_copy / "batches.npz", allow_pickle=False) as file:
        arrays = {key: np.array(file[key]) for key in file.files}
    arrays["labels_2"] = arrays["labels_2"].astype(np.float32)
    write_npz(model_copy / "batches.npz", arrays)
    assert "labels are float32" in refusal(model_copy)


def test_a_batch_of_another_shape_is_refused(model_copy):
    with np.load(model_copy / "batches.npz", allow_pickle=False) as file:
        arrays = {key: np.array(file[key]) for key in file.files}
    arrays["attention_mask_0"] = arrays["attention_mask_0"][:, :3]
    write_npz(model_copy / "batches.npz", arrays)
    assert "attention_mask has shape (8, 3), not (8, 16)" in refusal(model_copy)


def test_an_input_the_model_does_not_take_is_refused(model_copy):
    with np.load(model_copy / "batches.npz", allow_pickle=False) as file:
        arrays = {key: np.array(file[key]) for key in file.files}
    arrays |= {f"position_ids_{i}": arrays["input_ids_0"] for i in range(30)}
    write_npz(model_copy / "batches.npz", arrays)
    assert "has 'position_ids', which is not an input of this model" in refusal(model_copy)


def test_reading_a_run_needs_no_model(model_copy):
    (model_copy / "model.safetensors").unlink()
    run = read_run(model_copy)
    assert run.optimizer.schedule == "cosine"
    assert run.head == ("classifier.dense", "classifier.out_proj")
    assert len(run.batches) == 30


def test_arrays_come_without_pickle(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(2))
    assert read_npz(tmp_path / "a.npz").floats("x").dtype == np.float32
