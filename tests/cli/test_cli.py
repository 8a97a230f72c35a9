"""The command line: help with examples, one clear line for bad input, exit codes."""

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import goat_jax
from goat_jax.cli.entry import in_one_line
from goat_jax.cli.log_level import apply_log_level
from goat_jax.cli.main import main, quiet_compiler
from goat_jax.errors import Notice
from goat_jax.hardware.compile_cache import keep_compiled
from goat_jax.nn.attention import AttentionPlan
from tiny_run import LIGHT, TWO, write_run


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("cli"), 64, 20)


def error_of(capsys, *arguments: str) -> tuple[int, str]:
    """The exit code and the only line on stderr."""
    code = main(list(arguments))
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return code, lines[0]


@pytest.mark.slow
def test_the_version_is_printed_and_the_package_runs_as_a_module():
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    command = [sys.executable, "-m", "goat_jax", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"goat-jax {goat_jax.__version__}\n"


def test_help_needs_no_large_package():
    code = "import sys; from goat_jax.cli.parser import make_parser; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "transformers"} & set(done.stdout.split())


@pytest.mark.parametrize("verb", ["train", "evaluate", "parity", "methods", "inspect"])
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"example: goat-jax {verb}" in capsys.readouterr().out


def test_methods_lists_every_method(capsys):
    from goat_jax.adapters.methods import METHODS

    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name}: " in printed for name in METHODS)


def train(config: Path | str, out: Path, *more: str) -> list[str]:
    return ["train", "--quiet", "--config", str(config), "--out", str(out), *more]


def test_bad_settings_give_one_line(config_file, tmp_path, capsys):
    """Each of these ends before anything is written."""
    out = tmp_path / "run"
    cases = {
        ("--adapter.total-rank", "12"): "total rank 12 is not divisible by 8 experts: choose 8",
        ("--adapter.top-k", "9"): "top_k 9 is not in 1..8",
        ("--adapter.target-modules", "decoder"): "target 'decoder' matches no linear layer",
        ("--adapter.method", "gaot"): "did you mean 'goat'?",
        (
            "--adapter.alpha",
            "-1",
            "--adapter.method",
            "lora",
            "--adapter.rho",
            "2",
        ): "no option 'rho'",
        ("--model.path", str(tmp_path)): "has no config.json",
        ("--task.label", "tone"): "tone",
        ("--optimizer.schedule", "cosin"): "did you mean 'cosine'?",
        ("--train.batch-size", "1000"): "64 rows do not fill one batch of 1000",
    }
    for arguments, expected in cases.items():
        code, line = error_of(capsys, *train(config_file, out, *arguments))
        assert code == 2 and expected in line, (arguments, line)
        assert not out.exists(), arguments


def test_an_unknown_key_names_the_nearest(config_file, tmp_path, capsys):
    code, line = error_of(capsys, *train(config_file, tmp_path / "run", "--adapter.metod", "goat"))
    assert code == 2 and "did you mean --adapter.method goat?" in line


def test_an_unknown_config_option_names_the_nearest(config_file, tmp_path, capsys):
    code, line = error_of(capsys, "train", "--config", f"{config_file}:metod=goat")
    assert code == 2 and "did you mean 'method'?" in line


def test_a_rank_above_the_smaller_side_is_reported(config_file, tmp_path, capsys):
    code, line = error_of(
        capsys, *train(config_file, tmp_path / "run", "--adapter.total-rank", "64")
    )
    assert code == 2 and "total rank 64 is above its smaller side 32" in line


def test_a_row_without_its_label_is_named(config_file, tmp_path, capsys):
    rows = (config_file.parent / "train.jsonl").read_text().splitlines()
    rows[6] = json.dumps({"sentence": "no tone at all"})
    (tmp_path / "broken.jsonl").write_text("\n".join(rows))
    arguments = train(config_file, tmp_path / "run", "--task.train", str(tmp_path / "broken.jsonl"))
    code, line = error_of(capsys, *arguments)
    assert code == 2 and "broken.jsonl" in line and "7" in line and "label" in line


def test_a_cut_weights_file_is_named(config_file, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (config_file.parent / "model").iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[:-100] if file.suffix == ".safetensors" else data)
    code, line = error_of(
        capsys, *train(config_file, tmp_path / "run", "--model.path", str(folder))
    )
    assert code == 2 and "model.safetensors" in line and "fetch it again" in line


def test_not_a_run_folder(tmp_path, capsys):
    for verb in ("evaluate", "inspect"):
        code, line = error_of(capsys, verb, str(tmp_path))
        assert code == 2 and "not a run folder" in line


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_keeps_what_was_whole(tiny, tmp_path, without_torch):
    """A limit on file sizes stands for the disk; the run stops in its first checkpoint.

    The values are spread over files as their writes happen to meet, so each of these may be under
    the limit. The tree's description (`_METADATA`) is one file of 9 kB in every run, and all that
    is written before it is shorter.
    """
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000));"
        "from goat_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = train(f"{tiny / 'config.py'}:{TWO}", tmp_path / "run", "--train.save-every", "2")
    command = [sys.executable, "-c", code, *arguments]
    # Python would cut the bytecode of modules that nothing has imported before, and jax programs.
    env = without_torch | {"PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("goat-jax: error:")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert "could not be written" in lines[0] and "free some space" in lines[0]
    assert "Event loop is closed" not in done.stderr
    steps = [path.name for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")]
    assert not [name for name in steps if name.isdigit()]


@pytest.mark.parametrize("words", ["--help", "methods"])
def test_a_reader_that_has_seen_enough_is_no_error(words, without_torch):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "goat_jax", words]
    env = without_torch | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=env)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_only_reports_to_a_closed_event_loop_are_hushed(capsys, monkeypatch):
    class Straggler:
        def __init__(self, error: str):
            self.error = error

        def __del__(self):
            raise RuntimeError(self.error)

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    main(["methods"])
    Straggler("Event loop is closed")
    assert not capsys.readouterr().err
    Straggler("out of memory")
    assert "RuntimeError: out of memory" in capsys.readouterr().err


# The choice of the folder is tested below, without a process of its own.
@pytest.mark.nightly
def test_what_is_compiled_is_kept_for_the_next_start(config_file, tmp_path, without_torch):
    settings = without_torch | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    settings.pop("JAX_COMPILATION_CACHE_DIR", None)  # of other tests
    settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # jax keeps what takes a second
    code = "import sys; from goat_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = train(f"{config_file}:{LIGHT},steps=4", tmp_path / "run")
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, env=settings, check=True, capture_output=True)
    kept = [path.name for path in (tmp_path / "cache" / "goat_jax" / "compiled").iterdir()]
    assert any("train_step" in name for name in kept)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file in place", "writable"])
def test_programs_are_kept_where_that_is_possible(tmp_path, monkeypatch, recwarn, kind):
    kept_settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in kept_settings}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if kind == "file in place":
        (tmp_path / "goat_jax").touch()
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    warnings.simplefilter("always", Notice)
    try:
        keep_compiled()
        found, shortest = (jax.config.values[name] for name in kept_settings)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    kept = tmp_path / "goat_jax" / "compiled"
    if kind == "writable":
        assert (found, shortest) == (str(kept), 0.0) and not recwarn.list
    else:
        assert found is None
        assert f"cannot use the cache {kept} (" in str(recwarn.pop(Notice).message)


@pytest.mark.slow
def test_train_evaluate_inspect(config_file, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(train(f"{config_file}:{LIGHT},steps=10", out)) == 0
    printed = capsys.readouterr().out
    assert "held out" in printed and "accuracy" in printed
    assert (out / "training.png").stat().st_size > 10_000
    assert (out / "expert_load.png").stat().st_size > 10_000
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "eval"][-1]
    assert main(["evaluate", str(out), "--step", "10", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["accuracy"] == last["accuracy"]
    assert scores["loss"] == pytest.approx(last["loss"], rel=1e-6)
    assert main(["inspect", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "bert.encoder.layer.{}.attention.self.query" in printed and "energy in top 8" in printed
    code, line = error_of(capsys, "evaluate", str(out), "--step", "7")
    assert code == 2 and "no checkpoint of step 7" in line


def test_inspect_counts_a_config_without_weights(capsys, monkeypatch):
    """And names what the device's kernel refuses, here on a GPU."""
    gpu = SimpleNamespace(platform="cuda")
    monkeypatch.setattr(AttentionPlan, "_device", lambda self: gpu)
    source = "configs/glue.py:task=rte,method=goat"
    assert main(["inspect", "--config", source, "--model", "roberta-large"]) == 0
    out = capsys.readouterr().out
    assert "adapters 15,925,248 + heads" in out
    assert "adapters are 4.48% of the pretrained 355M" in out
    assert "\nattention: xla, since cudnn cannot drop out probabilities (model.dropout)" in out
    assert main(["inspect"]) == 2
    assert "a run folder or --config FILE" in capsys.readouterr().err


@pytest.mark.slow
def test_methods_of_a_model(capsys):
    assert main(["methods", "--model", "clip-vit-base-patch32"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["goat", "8", "8", "1,990,656", "2.28%"] in lines


def test_a_source_that_does_not_exist_is_no_model(tmp_path, capsys):
    code, line = error_of(capsys, "evaluate", str(tmp_path / "nothing"))
    assert code == 2 and "nothing does not exist here: give a run folder" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "run", "--limit", "0"], "--limit 0 is not valid"),
        (["evaluate", "run", "--seconds", "nan"], "--seconds nan is not valid"),
        (["evaluate", "run", "--tensor", "0"], "--tensor 0 is not valid: give 1 or more, or -1"),
        (["evaluate", "run", "--memory", "1.5"], "--memory 1.5 is not valid"),
        (["evaluate", "run", "--k", "1", "0"], "--k 0 is not valid"),
        (["generate", "run", "--temperature", "nan"], "--temperature nan is not valid"),
        (["generate", "run", "--top-p", "2"], "--top-p 2.0 is not valid"),
        (["generate", "run", "--max-new-tokens", "0"], "--max-new-tokens 0 is not valid"),
        (["generate", "run", "--seed", "-1"], "--seed -1 is not valid"),
        (["plot", "run", "--row", "-1"], "--row -1 is not valid"),
        (["export", "run", "out", "--to", "peft", "--step", "x"], "--step 'x' is not valid"),
        (["export", "run", "out", "--to", "pfet"], "invalid choice: 'pfet'"),
        (["bench", "layer", "--turns", "0"], "--turns 0 is not valid"),
        (["train", "--process", "inf"], "--process inf is not valid"),
        (["plot", "run", "--stp", "3"], "unrecognized arguments: --stp 3"),
        (["nosuch"], "there is no verb 'nosuch'"),
        ([], "VERB"),
    ],
)
def test_wrong_arguments_of_every_verb_are_one_line(words, message, capsys):
    code, line = error_of(capsys, *words)
    assert code == 2 and message in line


@pytest.mark.parametrize(("level", "seen"), [("error", ""), ("warning", "p: look here\n")])
def test_the_log_level_decides_what_is_printed_besides_results(level, seen, capsys):
    warnings.simplefilter("always", Notice)  # here they are errors otherwise

    def notice():
        apply_log_level(level)
        warnings.warn("look here", Notice, stacklevel=1)
        return 0

    assert in_one_line("p", notice) == 0
    assert capsys.readouterr().err == seen


@pytest.mark.parametrize(("level", "value"), [("warning", "3"), ("info", None)])
def test_the_compilers_remarks_are_for_its_developers(level, value, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "")  # restored at the end
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    apply_log_level(level)
    quiet_compiler()
    apply_log_level("warning")
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == value


def test_debug_adds_the_traceback_of_an_error(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    words = ["inspect", "runs/nothing"]
    assert main(words) == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert main([*words, "--log-level", "debug"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert main(words) == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert lines[0].startswith("Traceback") and lines[-1].startswith("goat-jax: error: ")
