"""Shipped configs go by their names; a name that is not known is one line that helps."""

import pytest

from goat_jax.cli.main import main
from goat_jax.config.files import load_config
from goat_jax.config.shipped import config_file, shipped_configs


def test_a_name_is_a_config_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("glue:task=rte,rank=8").adapter.total_rank == 8
    assert set(shipped_configs()) >= {"demo", "glue", "vision", "commonsense"}


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("")
    assert config_file("demo").read_text() == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "dmeo",
            "no config is called dmeo (did you mean 'demo'?): give the path of a file, or one",
        ),
        ("configs/glue.py", "configs/glue.py does not exist: the shipped one is --config glue"),
        ("mine/own.py", "config file mine/own.py does not exist\n"),
        ("glue:tsk=rte", "glue has no option 'tsk' (did you mean 'task'?): it has task, method"),
    ],
)
def test_a_mistyped_name_or_parameter(source, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", source]) == 2
    assert message in capsys.readouterr().err


def test_the_help_lists_the_names(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert ", ".join(shipped_configs()) in " ".join(capsys.readouterr().out.split())
