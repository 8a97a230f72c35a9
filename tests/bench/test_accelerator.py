"""The suite for an accelerator, with tiny sizes: every part measures, and no failure spreads."""

import json
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.bench.accelerator import attention, suite, training
from goat_jax.bench.accelerator.parts import PARTS
from goat_jax.bench.accelerator.rows import HEADERS, Row, Settings
from goat_jax.bench.accelerator.suite import PartResult, run_part, run_parts
from goat_jax.cli.main import main
from goat_jax.cli.verbs import bench
from goat_jax.errors import RunFailed, UserError

TINY = Settings(turns=1, tiny=True)


def in_this_process(part, settings, limit):
    """Runs a part as the suite does, without the start of a process."""
    del limit
    # As in a process of the suite: lowering jax's own attention in bfloat16 mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        return PartResult(part, tuple(PARTS[part].rows(settings)), 1.0, {"jax": "0"})


@pytest.mark.nightly
def test_every_part_gives_numbers_and_the_suite_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "run_parts", lambda *args: run_parts(*args, run=in_this_process))
    out = tmp_path / "suite"
    assert main(["bench", "accelerator", "--tiny", "--turns", "1", "--out", str(out)]) == 0
    written = json.loads((out / "bench_accelerator.json").read_text())
    rows = [Row(**row) for row in written["rows"]]
    assert list(written["seconds"]) == list(PARTS) and written["settings"]["tiny"]
    by_part = {part: [row for row in rows if row.part == part] for part in PARTS}
    assert all(row.seconds and row.rate for row in rows)
    for part in ("train", "train, long", "encoder", "vision"):
        assert [row.contender for row in by_part[part]] == ["lora", "goat"]
        assert all(row.mfu and row.planned for row in by_part[part])
        assert all(row.work.startswith("tiny ") for row in by_part[part])
    assert [row.contender for row in by_part["generation"]] == ["lora", "goat"]
    assert [row.error is not None for row in by_part["attention"]] == [True] * 5 + [False]
    table = (out / "bench_accelerator.md").read_text()
    head, _, *lines = table.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == HEADERS
    assert len(lines) == len(rows) and table in capsys.readouterr().out + "\n"


def test_time_that_is_left_over_goes_to_the_parts_that_follow():
    now, limits = [0.0], {}

    def run(part, settings, limit):
        limits[part] = limit
        now[0] += limit if part != "attention" else 0.0
        return PartResult(part, (), limit, {})

    list(run_parts(list(PARTS), TINY, 600.0, run, clock=lambda: now[0]))
    shares = {name: part.share for name, part in PARTS.items()}
    assert sum(shares.values()) == 600 and limits["train"] == pytest.approx(180)
    later = sum(shares.values()) - shares["train"] - shares["attention"]
    assert limits["vision"] == pytest.approx(420 * shares["vision"] / later)
    assert now[0] == pytest.approx(600)


@pytest.mark.slow
def test_a_part_that_fails_is_a_row():
    """In a process of its own, whose reason is kept."""
    found = run_part("train", Settings(model="no-such-model"), 100.0)
    assert found.rows[0].failed and "no-such-model: neither a folder" in found.rows[0].remark
    assert found.machine["jax"]


def test_a_part_that_takes_too_long_is_ended():
    (row,) = run_part("train", TINY, 0.001).rows
    assert row.failed and row.remark == "failed: took longer than 0 seconds"


def test_rows_before_a_crash_are_kept(tmp_path):
    kept = {"part": "attention", "work": "causal", "seconds": 1.0}
    (tmp_path / "results").write_text(json.dumps({"row": kept}) + "\n")
    reason = suite._reason(-11, "warning\n")
    found = suite._result("attention", tmp_path / "results", -11, reason, 1.0)
    assert found.rows[0].seconds == 1.0
    assert found.rows[1].remark == "failed: its process was ended by SIGSEGV"
    assert suite._reason(1, "Traceback\nMemoryError: x\n\n") == "MemoryError: x"
    assert suite._reason(3, "") == "its process ended with code 3"


def test_a_failed_part_sets_the_exit_code(capsys, monkeypatch):
    def fails(part, settings, limit):
        return PartResult(part, (Row(part, remark="failed: no memory"),), 1.0, {})

    given = []

    def run(parts, settings, seconds):
        given.append(seconds)
        return run_parts(parts, settings, seconds, run=fails)

    monkeypatch.setattr(bench, "run_parts", run)
    assert main(["bench", "accelerator", "--tiny", "--parts", "vision", "train"]) == 1
    assert given == [3600]  # tiny sizes measure nothing, so a busy machine ends no part
    printed = capsys.readouterr().out
    assert "vision: failed: no memory (1 s)" in printed and "| train " in printed


def test_a_kernel_with_other_numbers_is_a_failure(monkeypatch):
    """One that shifts the keys by a token; its rows are still in the table."""
    real = attention.program

    def wrong(way, visible):
        run = real(way, visible)
        if way == "xla":
            return run
        return lambda query, key, value, weights: run(query, jnp.roll(key, 1, 1), value, weights)

    monkeypatch.setattr(attention, "program", wrong)
    monkeypatch.setattr(attention, "conditions", lambda shape: {"full": attention.Visible()})
    monkeypatch.setattr(attention, "TINY", {**attention.TINY, "short": 32, "long": 32})
    with jax.numpy_dtype_promotion("standard"):
        rows = attention.attention_rows(TINY)
        assert next(rows).remark.startswith("error above") and next(rows).seconds
    with pytest.raises(RunFailed, match=r"differ from XLA's .*: full"):
        next(rows)


def test_a_size_that_does_not_fit_is_passed_over(monkeypatch):
    sizes = {4: 90, 2: 50, 1: 30}  # besides a base of 8 that both share, and two states of 2

    def compiled(config, model):
        size = sizes[config.train.batch_size]
        return training.Step(
            *(cast("Any", None),) * 2, base=8, arguments=10, temporaries=size, model_flops=1
        )

    batches = tuple(training.Batch(rows, 8) for rows in sizes)
    monkeypatch.setattr(training, "compile_step", compiled)
    monkeypatch.setattr(training, "free_bytes", lambda: 62)
    batch, steps = training._fitting(TINY, training.decoder_config, batches)
    assert batch.rows == 2 and list(steps) == ["lora", "goat"]
    monkeypatch.setattr(training, "free_bytes", lambda: 41)
    with pytest.raises(UserError, match="the smallest size needs"):
        training._fitting(TINY, training.decoder_config, batches)


def test_causal_attention_s_flops_are_half_of_all_pairs():
    shape = attention.Shape(rows=2, tokens=4, heads=3, groups=1, size=5)
    pairs = 2 * 3 * 4 * 4
    assert shape.causal_flops == 6 * 2 * 5 * pairs // 2
    assert np.isclose(shape.causal_flops, 3 * 2 * 2 * 5 * pairs / 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layer", "--tiny"], "bench layer takes no --tiny: bench accelerator does"),
        (["accelerator", "--parts", "visoin"], "--parts"),
        (["accelerator", "--model", "lama-3-8b"], "lama-3-8b: neither a folder"),
        (["accelerator", "--minutes", "0"], "--minutes"),
    ],
)
def test_what_does_not_fit_is_said(words, message, capsys):
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
