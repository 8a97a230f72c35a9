"""The README's Python runs, and what it names exists."""

import re
from pathlib import Path

import pytest

from goat_jax.adapters.methods import METHODS
from goat_jax.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert blocks
    for block in blocks:
        names: dict = {}
        exec(block, names)
        assert names["y"].shape == (4, 32)


def test_pictures_and_paths_exist():
    for path in re.findall(r"\]\((docs/[^)]+)\)", TEXT):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"--config (configs/\w+\.py)", TEXT):
        assert (ROOT / path).is_file(), path
    tree = TEXT.split("## The tree")[1].split("##")[0]
    for line in filter(str.strip, tree.splitlines()):
        indent = len(line) - len(line.lstrip())
        for name in re.findall(r"^[\w./]+(?: [\w]+\.py)*", line.strip())[0].split():
            folder = ROOT if indent == 4 else ROOT / "goat_jax"
            assert (folder / name).exists(), name


def test_every_method_is_in_the_table():
    table = TEXT.split("## Methods")[1].split("## Numbers")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.M)) == set(METHODS)


def test_the_verbs_it_shows_exist(capsys):
    for verb in set(re.findall(r"^    goat-jax (\w+)", TEXT, flags=re.M)):
        try:
            main([verb, "--help"])
        except SystemExit as stop:
            assert stop.code == 0, verb
