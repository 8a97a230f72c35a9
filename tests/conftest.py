"""Strict settings for every test, and the fixtures they share."""

import dataclasses
import gc
import os
import tempfile
from pathlib import Path

# Must be set before jax starts. Eight CPU devices, so that sharding can be tested anywhere. Tests
# compile much and run little: without LLVM's optimizations compiling takes half of the time, with
# the older, plainer code for fusions a file of tests takes two thirds of the processor's, and a
# program that is compiled in one piece in place of 32 takes six sevenths.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What one process compiles, the other workers and the processes that tests start need not: the
# controller of pytest-xdist makes the folder, the others inherit it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="goat_jax_compiled_"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="goat_jax_modules_"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="goat_jax_tests_")  # nobody's own cache

import jax
import pytest

from tiny_run import LIGHT, write_run

# Here small programs are kept, too, since reading one takes half of the time. Processes that tests
# start keep large ones: of small ones, two at once would read what the other is still writing.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# Archives of packages are large and pinned by their hash: they are kept from session to session.
_packages = Path.home() / ".cache" / "goat_jax" / "packages"
_packages.mkdir(parents=True, exist_ok=True)
(Path(os.environ["XDG_CACHE_HOME"]) / "goat_jax").mkdir()
(Path(os.environ["XDG_CACHE_HOME"]) / "goat_jax" / "packages").symlink_to(_packages)

ROOT = Path(__file__).resolve().parent.parent
MAPPINGS = Path("/proc/self/maps")
MOST_MAPPINGS = 20_000


@pytest.fixture(scope="module", autouse=True)
def drop_compiled_programs():
    """Drops the compiled programs between two files of tests if the process has many of them.

    Each holds three mappings of memory for as long as a cache of jax's keeps it, and Linux allows a
    process 65,530: one that runs half of the tests comes to more, and crashes in malloc or in LLVM.
    """
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


def pytest_collection_finish():
    """Leaves what the imports made, a million objects, out of all later collections of garbage.

    Tracing makes many objects that live on: at Python's own thresholds 5 % of the time is spent
    on looking for cycles among them, at these 1.5 %.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


SHORT = 5.0
"""Most seconds of the processor, not of a clock, for a test that is neither slow nor nightly."""


def pytest_addoption(parser):
    parser.addoption("--strict-tiers", action="store_true", help="fail if a quick test is long")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = sum(os.times()[:4])
    result = yield
    if not any(item.get_closest_marker(tier) for tier in ("slow", "nightly")):
        item.user_properties.append(("processor_seconds", sum(os.times()[:4]) - before))
    return result


def long_tests(config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    passed = reporter.stats.get("passed", []) if reporter else []
    spent = [(dict(one.user_properties).get("processor_seconds", 0.0), one) for one in passed]
    return [f"{used:.1f} s {one.nodeid}" for used, one in spent if used > SHORT]


def pytest_terminal_summary(terminalreporter, config):
    if found := long_tests(config):
        terminalreporter.section(f"unmarked tests over {SHORT:.0f} processor-seconds: mark as slow")
        terminalreporter.write_line("\n".join(found))


def pytest_sessionfinish(session):
    if session.config.getoption("--strict-tiers", False) and long_tests(session.config):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data beside the repository; tests that need it skip visibly without it."""
    path = ROOT.parent / "shared"
    if not (path / "golden").is_dir():
        pytest.skip("needs the development data folder ../shared")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, train.jsonl, test.jsonl and config.py."""
    root = tmp_path_factory.mktemp("tiny")
    write_run(root)
    return root


@pytest.fixture(scope="session")
def config(tiny: Path):
    """The tiny run's config."""
    from goat_jax.config.files import load_config

    return load_config(str(tiny / "config.py"))


@pytest.fixture(scope="session")
def light(tiny: Path):
    """The tiny run with adapters in the query kernels alone, whose step compiles in half the time.

    For tests of the loop, which is the same whatever is adapted.
    """
    from goat_jax.config.files import load_config

    return load_config(f"{tiny / 'config.py'}:{LIGHT}")


@pytest.fixture(scope="session")
def two_modules(config):
    """The tiny run with adapters in two kinds of modules, of different shapes, in place of six."""
    targets = ("query", "intermediate.dense")
    return dataclasses.replace(
        config, adapter=dataclasses.replace(config.adapter, target_modules=targets)
    )


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that finds no torch.

    goat-jax needs none, but transformers imports it wherever it is, which takes seconds. The
    process computes as precisely as the tests do, so that it finds what they have compiled.
    """
    folder = tmp_path_factory.mktemp("without_torch")
    (folder / "sitecustomize.py").write_text("import sys\n\nsys.modules['torch'] = None\n")
    known = [path for path in [os.environ.get("PYTHONPATH")] if path]
    found = {"PYTHONPATH": os.pathsep.join([str(folder), *known])}
    return os.environ | found | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}


@pytest.fixture(scope="session")
def finished(two_modules, tmp_path_factory: pytest.TempPathFactory):
    """Sixty steps with two kinds of modules, trained to their end once: (config, summary)."""
    train = dataclasses.replace(two_modules.train, steps=60)
    return _trained(dataclasses.replace(two_modules, train=train), tmp_path_factory)


@pytest.fixture(scope="session")
def light_finished(light, tmp_path_factory: pytest.TempPathFactory):
    """The light run, trained to its end once: (config, summary)."""
    return _trained(light, tmp_path_factory)


def _trained(config, tmp_path_factory: pytest.TempPathFactory):
    from goat_jax.training.trainer import fit

    config = dataclasses.replace(config, out=str(tmp_path_factory.mktemp("finished") / "run"))
    return config, fit(config, progress=False)
