"""The page on parity bundles: its programs run as they stand and write bundles that pass.

What they wrote once is in ``bundles/``, so that a bundle can be read and replayed without torch.
"""

import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from goat_jax.cli.main import main
from goat_jax.parity.methods.cases import CASES
from goat_jax.parity.methods.replay import REPLAYS
from goat_jax.parity.reference_code import STARTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "parity_bundle.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"Save this as `(\w+\.py)`.*?```python\n(.*?)```", PAGE, flags=re.S))
KEPT = Path(__file__).resolve().parent / "bundles"
WRITERS = {"layer": "write_layer.py", "model": "write_model.py", "method": "write_lora.py"}


def contents(folder: Path) -> dict[str, object]:
    """Names of the files, and of what they hold: keys of JSON, shapes of arrays."""
    found: dict[str, object] = {}
    for path in sorted(folder.iterdir()):
        found[path.name] = path.suffix
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                found[path.name] = {name: file[name].shape for name in file.files}
        elif path.name in ("layers.json", "methods.json", "meta.json"):
            found[path.name] = json.loads(path.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_a_program_of_the_page_writes_a_bundle_that_passes(kind, tmp_path, monkeypatch, capsys):
    for name in ("goat_linear.py", WRITERS[kind]):
        (tmp_path / name).write_text(PROGRAMS[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    runpy.run_path(WRITERS[kind])
    capsys.readouterr()
    assert f"    goat-jax parity bundle/{kind}\n" in PAGE
    assert main(["parity", f"bundle/{kind}"]) == 0
    assert "all within tolerance" in capsys.readouterr().out
    assert contents(tmp_path / "bundle" / kind) == contents(KEPT / kind)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "checks"), [("layer", 22), ("method", 11), ("model", 29)])
def test_a_kept_bundle_passes(kind, checks, capsys):
    assert main(["parity", str(KEPT / kind), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and len(report["checks"]) == checks


def test_a_changed_number_of_a_kept_bundle_is_found(tmp_path, capsys):
    folder = shutil.copytree(KEPT / "layer", tmp_path / "layer")
    with np.load(folder / "layer_goat.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(folder / "layer_goat.npz", **(arrays | {"y": arrays["y"] * np.float32(1.0001)}))
    assert main(["parity", str(folder)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_page_has_every_initialization_and_formula():
    table = PAGE.split("### Initializations")[1].split("## A model")[0]
    assert set(STARTS) <= set(re.findall(r"`(\w+)`", table))
    table = PAGE.split("| `formula` |")[1]
    assert set(REPLAYS) <= set(re.findall(r"`(\w+)`", table))
    for formula, case in CASES.items():
        if formula in re.findall(r"^\| `(\w+)`", table, flags=re.M):
            row = next(line for line in table.splitlines() if line.startswith(f"| `{formula}`"))
            assert [name for name in case.tensors if name not in row and "same" not in row] == []


def test_the_page_has_every_key_and_array_of_the_kept_bundles():
    for path in KEPT.rglob("*.json"):
        if path.name != "config.json":
            value = json.loads(path.read_text())
            for key in value[0] if isinstance(value, list) else value:
                assert f"`{key}`" in PAGE, key
    for path in KEPT.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            for name in {re.sub(r"_\d+$", "", name) for name in file.files}:
                assert f"`{name}`" in PAGE or name[:2] in ("A_", "B_") or name[-2:] in ("A0", "B0")
