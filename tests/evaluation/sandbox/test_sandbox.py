"""The sandbox holds: limits, files, network, processes; and a program cannot pretend to pass.

Limits are small, and every program here would stop by itself if it were not confined.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile

import pytest

from goat_jax.errors import RunFailed, UserError
from goat_jax.evaluation.sandbox import landlock, run, seccomp
from goat_jax.evaluation.sandbox.limits import MEBIBYTE, Limits, Trial
from goat_jax.evaluation.sandbox.run import check_sandbox

SMALL = Limits(seconds=20.0, cpu_seconds=2, memory=256 * MEBIBYTE, disk=2 * MEBIBYTE)


def run_program(program, limits=run.DEFAULT_LIMITS, test=""):
    """Passes if the program's process reaches the program's end and its test passes."""
    return run.run_program(Trial(program, test), limits)


def run_programs(programs, limits, **more):
    return run.run_programs([Trial(program, "") for program in programs], limits, **more)


@pytest.fixture(autouse=True)
def _confinable():
    try:
        check_sandbox()
    except UserError as error:
        pytest.skip(str(error))


def test_a_program_passes_if_it_comes_to_its_end():
    assert run_program("import math\nassert math.sqrt(4) == 2", SMALL).passed
    outcome = run_program("assert 1 == 2, 'not so'", SMALL)
    assert not outcome.passed and outcome.detail == "AssertionError: not so"
    assert "SyntaxError" in run_program("def f(:", SMALL).detail


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os.write(1, b'{\"passed\": true}'); os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    ],
)
def test_ending_early_is_no_pass(program):
    assert not run_program(program, SMALL).passed


@pytest.mark.slow
def test_an_endless_program_is_ended():
    limits = Limits(seconds=1.0, cpu_seconds=9, memory=256 * MEBIBYTE)
    for program in ("n = 0\nwhile n < 10**9: n += 1", "import time; time.sleep(20)"):
        assert run_program(program, limits).detail == "not done after 1 s"


@pytest.mark.slow
def test_processor_time_is_limited_even_where_there_is_time_left():
    limits = Limits(seconds=60.0, cpu_seconds=1, memory=256 * MEBIBYTE)
    assert "SIGKILL" in run_program("n = 0\nwhile n < 10**9: n += 1", limits).detail


@pytest.mark.parametrize("size", [300, 2000])
def test_memory_is_limited(size):
    assert run_program(f"x = bytearray({size} * 2**20)", SMALL).detail == "MemoryError"
    assert run_program("x = bytearray(40 * 2**20)", SMALL).passed


@pytest.mark.parametrize(
    "start",
    [
        "import os\nfor _ in range(3):\n    if os.fork() == 0: time.sleep(1); os._exit(0)",
        "import subprocess\nsubprocess.run(['true'])",
        "import threading\nthreading.Thread(target=time.sleep, args=(1,)).start()",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    ],
)
def test_more_processes_than_itself_are_refused(start):
    """Its allowance is one process with one thread."""
    outcome = run_program(f"import time\n{start}", SMALL)
    assert not outcome.passed
    assert "not permitted" in outcome.detail or "can't start new thread" in outcome.detail


@pytest.mark.slow
def test_files_outside_its_own_folder_cannot_be_deleted_or_changed(tmp_path):
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "note.txt").write_text("kept")
    before = os.stat(tree / "inner" / "note.txt")
    attempts = [
        f"import shutil; shutil.rmtree({str(tree)!r})",
        f"import os; os.remove({str(tree / 'inner' / 'note.txt')!r})",
        f"import os; os.rename({str(tree)!r}, 'mine')",
        f"import os; os.truncate({str(tree / 'inner' / 'note.txt')!r}, 0)",
        f"open({str(tree / 'inner' / 'note.txt')!r}, 'w')",
        f"open({str(tree / 'new.txt')!r}, 'w')",
        f"import os; os.chmod({str(tree / 'inner' / 'note.txt')!r}, 0)",
        f"import os; os.utime({str(tree / 'inner' / 'note.txt')!r}, (0, 0))",
        f"import os; os.symlink({str(tree)!r}, 'way'); os.remove('way/inner/note.txt')",
        f"import os; os.link({str(tree / 'inner' / 'note.txt')!r}, 'mine')",
        f"print(open({str(tree / 'inner' / 'note.txt')!r}).read())",
        f"import os; os.listdir({str(tree)!r})",
    ]
    for attempt, outcome in zip(attempts, run_programs(attempts, SMALL), strict=True):
        refused = "ermi" in outcome.detail or "cross-device" in outcome.detail
        assert not outcome.passed and refused, (attempt, outcome)
    assert (tree / "inner" / "note.txt").read_text() == "kept"
    after = os.stat(tree / "inner" / "note.txt")
    assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns)
    assert [path.name for path in tree.iterdir()] == ["inner"]


def test_its_own_folder_is_its_own_and_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(run.tempfile, "tempdir", str(tmp_path))
    program = (
        "import os, pathlib\n"
        "os.mkdir('a'); pathlib.Path('a/b').write_text('x'); os.rename('a/b', 'c')\n"
        "assert pathlib.Path('c').read_text() == 'x'; os.remove('c'); os.rmdir('a')\n"
        "pathlib.Path('left').write_text('x'); os.mkdir('locked', 0)"
    )
    assert run_program(program, SMALL) == run.ProgramResult(True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "program",
    [
        "open('big', 'wb').write(bytes(3 * 2**20))",
        "import time\nfor n in range(8): open(str(n), 'wb').write(bytes(2**20)); time.sleep(0.1)",
    ],
)
def test_its_folder_cannot_grow_without_end(program):
    assert not run_program(program, SMALL).passed


def test_no_connection_is_opened():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.2)
        socket.create_connection(("127.0.0.1", port)).close()  # from here one can
        server.accept()[0].close()
        calls = [
            f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
            f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)",
            "import socket; socket.socket(socket.AF_UNIX)",
        ]
        for outcome in run_programs(calls, SMALL):
            assert not outcome.passed and "not permitted" in outcome.detail
        with pytest.raises(TimeoutError):
            server.accept()


def test_other_processes_are_out_of_reach():
    other = subprocess.Popen(["sleep", "20"])
    try:
        outcome = run_program(f"import os; os.kill({other.pid}, 15)", SMALL)
        assert not outcome.passed and other.poll() is None
        limits = f"import resource; resource.prlimit({other.pid}, resource.RLIMIT_CPU, (1, 1))"
        assert not run_program(limits, SMALL).passed
    finally:
        other.kill()
        other.wait()


def test_the_environment_and_the_limits_are_its_own():
    assert run_program("import os; assert set(os.environ) <= {'HOME', 'TMPDIR', 'LC_ALL'}").passed
    raised = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))"
    assert not run_program(raised, SMALL).passed


def test_calls_younger_than_the_table_do_not_exist():
    program = "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
    for number in (seccomp.NEWER, 999, 0x40000000 + 41):
        asked = f"assert c.syscall({number}) == -1 and ctypes.get_errno() == 38"
        assert run_program(program + asked, SMALL).passed


def test_several_at_a_time_keep_their_order():
    done = []
    programs = [f"assert {n} % 2" for n in range(6)]
    outcomes = run_programs(programs, SMALL, workers=2, progress=done.append)
    assert [outcome.passed for outcome in outcomes] == [False, True] * 3
    assert done == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ((landlock, "abi"), lambda: 0, "has no Landlock"),
        ((run.platform, "machine"), lambda: "riscv64", "not on riscv64"),
        ((run.sys, "platform"), "darwin", "on Linux only, not on darwin"),
    ],
)
def test_where_it_cannot_protect_it_refuses(attribute, value, says, monkeypatch):
    monkeypatch.setattr(*attribute, value)
    with pytest.raises(UserError, match=says):
        run_program("x = 1", SMALL)


def test_a_child_that_cannot_be_confined_runs_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(landlock, "grants", lambda: [(str(tmp_path / "nowhere"), 4)])
    with pytest.raises(RunFailed, match="could not be set up, nothing was run"):
        run_program("x = 1", SMALL)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_it_works_without_root_too(monkeypatch):
    """The child's own part, as nobody: it needs no rights to give up rights."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, 65534, 65534)
        _works_for_nobody(place)


def _works_for_nobody(place):
    become_nobody = (
        "import os, sys; code = compile(open(sys.argv[1]).read(), 'inside', 'exec');"
        "names = {'__name__': 'inside'}; exec(code, names); names['load_own_modules'](sys.argv[2]);"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "names['ctypes'].CDLL(None).prctl(4, 1);"  # as for a program that a user starts
        "names['main']()"
    )
    tests = {
        "import os; assert os.getuid() == 65534; open('note', 'w').write('x')": "",
        "import os; os.fork()": "not permitted",
        "open('/dev/null').read()": "Permission denied",
    }
    reading, writing = os.pipe()
    package = str(run.CHILD.parent.parent)
    answer = json.dumps({"do": "return", "roots": [None], "heap": []}).encode()
    for test, says in tests.items():
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", become_nobody, str(run.CHILD), package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=place,
            env={},
            pass_fds=(reading, writing),
        )
        # Python itself may lie where nobody may look, so its library is left out.
        order = run._confinement(SMALL, child.pid) | {"grants": [], "pipes": (reading, writing)}
        order |= {"program": None, "test": test, "known": "", "functions": ()}
        os.write(writing, len(answer).to_bytes(8, "big") + answer)  # the program was loaded
        said, _ = child.communicate(json.dumps(order).encode(), timeout=60)
        verdict = json.loads(said)
        assert verdict["passed"] is not bool(says), (test, verdict)
        assert says in verdict["detail"], (test, verdict)
    os.close(reading)
    os.close(writing)
