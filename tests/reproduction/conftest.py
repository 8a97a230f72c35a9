"""Tiny random models of the paper's families, made once."""

from pathlib import Path

import pytest

from paper_models import write_clip, write_roberta


@pytest.fixture(scope="session")
def roberta(tmp_path_factory) -> Path:
    return write_roberta(tmp_path_factory.mktemp("models") / "roberta")


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("models") / "clip")
