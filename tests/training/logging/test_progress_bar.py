"""Progress is a bar in a terminal and a few plain lines elsewhere."""

import io
import sys

import pytest

from goat_jax.training.logging.progress_bar import TrainProgress, make_console


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(total, seconds_a_step, start=0, stop=None, stream=None):
    """Lines printed by a run whose steps all take as long."""
    clock, stream = Clock(), stream or io.StringIO()
    with TrainProgress(total, start, stream=stream, clock=clock) as progress:
        for step in range(start + 1, (stop or total) + 1):
            clock.now += seconds_a_step
            progress.update(step, loss=1 / step, tokens_per_second=12345.6)
    return stream.getvalue().splitlines()


def test_a_quick_run_prints_its_first_and_last_step():
    lines = run(total=1000, seconds_a_step=0.005)
    assert lines == [
        "step 1/1000 (0%) | loss 1.0000 | 12,346 tokens/s | elapsed 0:00:00",
        "step 1000/1000 (100%) | loss 0.0010 | 12,346 tokens/s | elapsed 0:00:05",
    ]


def test_a_run_of_minutes_prints_every_twentieth():
    lines = run(total=1000, seconds_a_step=1.0)
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert steps == [1, *range(51, 1000, 50), 1000]
    assert lines[10] == (
        "step 501/1000 (50%) | loss 0.0020 | 12,346 tokens/s | elapsed 0:08:21 | eta 0:08:19"
    )


def test_a_slow_run_prints_every_minute_and_knows_its_eta():
    lines = run(total=100_000, seconds_a_step=45.0, stop=5)
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert steps == [1, 3, 5]
    assert lines[-1].endswith("eta 52 days, 1:56:15")


def test_never_two_lines_within_ten_seconds():
    assert len(run(total=20, seconds_a_step=1.0)) == 3  # 1, 11, 20: each step is 5 %


def test_a_run_that_goes_on_counts_from_its_start():
    lines = run(total=100, seconds_a_step=10.0, start=90)
    assert lines[0].startswith("step 91/100 (91%)") and lines[0].endswith("elapsed 0:00:10")


def test_a_run_stopped_early_says_where():
    lines = run(total=1000, seconds_a_step=0.001, stop=17)
    assert lines[-1].startswith("step 17/1000 (2%)") and len(lines) == 2


def test_values_stay_until_they_are_given_again():
    stream = io.StringIO()
    with TrainProgress(2, stream=stream) as progress:
        progress.update(1, loss=0.5, accuracy=0.25)
        progress.update(2, tokens_per_second=10)
    assert "loss 0.5000 | accuracy 0.2500 | 10 tokens/s" in stream.getvalue().splitlines()[-1]


def test_messages_are_lines_of_their_own_and_not_markup():
    stream = io.StringIO()
    with TrainProgress(2, stream=stream) as progress:
        progress.message("saved [bold] at step 1")
    assert stream.getvalue() == "saved [bold] at step 1\n"


def test_no_control_codes_outside_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI systems do
    assert "\x1b" not in "".join(run(total=10, seconds_a_step=20.0))


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    text = "\n".join(run(total=10, seconds_a_step=20.0, stream=Terminal()))
    assert "\x1b[" in text and "10/10" in text and "loss 0.1000" in text
    assert "step 10/10" not in text


def test_a_bar_starts_where_the_run_goes_on(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with TrainProgress(100, start_step=90, stream=stream):
        pass
    assert "90/100" in stream.getvalue()


def test_a_bar_leaves_piped_standard_output_alone(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    terminal = Terminal()
    with TrainProgress(2, stream=terminal) as progress:
        print("a result")
        progress.message("saved [bold]")
    assert piped.getvalue() == "a result\n"
    assert "saved [bold]" in terminal.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_not_enabled_prints_nothing(stream):
    with TrainProgress(2, enabled=False, stream=stream) as progress:
        progress.update(1, loss=0.5)
        progress.message("saved")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("name", ["NO_COLOR", "neither"])
def test_colors_are_for_terminals_without_no_color(name, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(name, "1")
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        make_console(stream).print("[red]loss[/red]")
    assert ("\x1b[31m" in terminal.getvalue()) == (name != "NO_COLOR")
    assert file.getvalue() == "loss\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not make_console(file).is_terminal
