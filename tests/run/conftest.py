"""The tiny run of ``helpers/tiny_run.py``, made and trained once for the tests of this folder."""

from pathlib import Path

import jax
import pytest

from tiny_run import write_run


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory):
    """Keeps what these tests compile, for each other and for the processes they start."""
    cache = str(tmp_path_factory.mktemp("compiled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        yield
        jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, train.jsonl, test.jsonl and config.py."""
    root = tmp_path_factory.mktemp("tiny")
    write_run(root)
    return root


@pytest.fixture(scope="session")
def config(tiny: Path):
    """The tiny run's config."""
    from goat_jax.config.run import load_config

    return load_config(str(tiny / "config.py"))


@pytest.fixture(scope="session")
def finished(config, tmp_path_factory: pytest.TempPathFactory):
    """The tiny run, trained to its end once: (config, summary)."""
    import dataclasses

    from goat_jax.training.trainer import fit

    out = tmp_path_factory.mktemp("finished") / "run"
    config = dataclasses.replace(config, out=str(out))
    return config, fit(config, progress=False)
