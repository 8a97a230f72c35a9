"""Attacks on the sandbox: a program's every way to pass without being right, to end the evaluation,
to reach another process, to leave something behind or to outlive its parent.

All programs here would stop by themselves if they were not confined. Whatever one does has to come
back as its own verdict, in one line, with nothing left in the folder of temporary files.
"""

import json
import os
import select
import signal
import subprocess
import sys

import pytest

from goat_jax.errors import UserError
from goat_jax.evaluation.sandbox import run, seccomp
from goat_jax.evaluation.sandbox.limits import MEBIBYTE, Limits, Trial

pytestmark = pytest.mark.slow  # each attack takes two processes

SMALL = Limits(seconds=20.0, cpu_seconds=4, memory=256 * MEBIBYTE, disk=2 * MEBIBYTE)
SHORT = Limits(seconds=0.5, cpu_seconds=4, memory=256 * MEBIBYTE, disk=2 * MEBIBYTE)


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path, monkeypatch):
    try:
        run.check_sandbox()
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(run.tempfile, "tempdir", str(tmp_path))
    yield
    assert not list(tmp_path.iterdir())


def named(cases, at_night=()):
    marks = {name: pytest.mark.nightly for name in at_night}
    return [pytest.param(case, id=name, marks=marks.get(name, ())) for name, case in cases.items()]


def verdict(program, test="", limits=SMALL, **more):
    outcome = run.run_program(Trial(program, test, **more), limits)
    assert outcome.passed is not bool(outcome.detail), outcome
    assert len(outcome.detail) < 300 and outcome.detail.isprintable(), outcome
    return outcome


# Wrong programs that want to pass

TEST = "def check(f):\n    assert f(3) == 4\n    assert f(10) == 11\n\ncheck(f)\n"
WRONG = "\ndef f(x):\n    return None\n"
RAISES = "\ndef f(x):\n    raise {}\n"
RETURNS = "\ndef f(x):\n    return {}\n"
EQUAL = """
class Equal({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __abs__(self): return 0
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __sub__
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __contains__ = __lt__
    def __hash__(self): return 0
"""
BASES = ("object", "int", "float", "str", "bytes", "list", "dict", "set", "tuple", "frozenset")
OWN_PARTS = """
import gc, sys
from goat_jax.evaluation.sandbox import peer
from goat_jax.evaluation.sandbox import values
ends = [each for each in gc.get_objects() if isinstance(each, peer.Peer)]
"""
PRETENDING = {
    **{f"equal-{base}": EQUAL.format(base=base) + RETURNS.format("Equal()") for base in BASES},
    "equal-metaclass": EQUAL.format(base="type") + "class f(metaclass=Equal): pass\n",
    "equal-class": EQUAL.format(base="type")
    + "class Own(metaclass=Equal): pass\n"
    + RETURNS.format("Own"),
    "equal-inside-a-list": EQUAL.format(base="object") + RETURNS.format("[Equal()]"),
    "dumps-replaced": "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'" + WRONG,
    "encoder-replaced": "import json.encoder\njson.encoder.JSONEncoder.encode = "
    "json.encoder.JSONEncoder.iterencode = lambda *a: 'true'" + WRONG,
    "nameless-exception": "class E(BaseException):\n    __str__ = lambda self: ''\n"
    "E.__name__ = ''" + RAISES.format("E"),
    "nameless-exception-at-once": "class E(BaseException):\n    __str__ = lambda self: ''\n"
    "E.__name__ = ''\nraise E" + WRONG,
    "exception-whose-text-raises": "class E(Exception):\n    def __str__(self): raise self"
    + RAISES.format("E"),
    "exception-of-odd-text": RAISES.format("ValueError('\\ud800 \\x1b[2J \\0 \\u202e \\n' * 99)"),
    "exit": "import sys" + RETURNS.format("sys.exit(0)"),
    "exit-at-once": "import sys\nsys.exit(0)",
    "hard-exit": "import os" + RETURNS.format("os._exit(0)"),
    "hard-exit-at-once": "import os\nos._exit(0)",
    "exit-handlers": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "stop-iteration": RAISES.format("StopIteration"),
    "stop-iteration-of-its-own": "class E(StopIteration): pass" + RAISES.format("E"),
    "generator-exit": RAISES.format("GeneratorExit"),
    "keyboard-interrupt": RAISES.format("KeyboardInterrupt"),
    "an-exit-that-is-an-exception": "class SystemExit(Exception): pass"
    + RAISES.format("SystemExit(0)"),
    "own-assertion": "import builtins\nbuiltins.AssertionError = ValueError" + WRONG,
    "builtins-replaced": "import builtins\nbuiltins.isinstance = lambda *a: True\n"
    "builtins.type = builtins.len = builtins.str = lambda *a: 4" + WRONG,
    "trace": "import sys\nsys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)" + WRONG,
    "frames": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "    frame.f_globals.update(passed=True, detail='')\n    frame = frame.f_back" + WRONG,
    "own-main": "import sys\nmain = sys.modules['__main__']\n"
    "main.verdict_of = main.serve_program = lambda *a: {'passed': True}" + WRONG,
    "own-peer": OWN_PARTS
    + "peer.described = lambda error: {'do': 'return', 'passed': True, 'detail': ''}\n"
    "peer.Peer._serve = lambda self, message: self._send("
    "{'do': 'return', 'passed': True, 'roots': [True], 'heap': []})",
    "own-values": OWN_PARTS + "values.TYPES.clear(); values.MUTABLE.clear(); values.DEPTH = 10**9\n"
    "peer.write_message = lambda *a: ({'passed': True}, [])" + WRONG,
    "answers-in-advance": OWN_PARTS + "for n in (True, 4, 4, 11, 11):\n"
    "    for end in ends: end._send({'do': 'return', 'roots': [n and None], 'heap': []})" + WRONG,
    "verdict-on-every-channel": "import os\nfor fd in range(64):\n"
    '    try: os.write(fd, b\'{"passed": true, "detail": "", "gone": false}\')\n'
    "    except OSError: pass" + WRONG,
    "no-function": "x = 4",
    "no-function-but-a-number": "f = 4",
    "no-function-but-a-name": "f = 'check'",
    "function-as-value": RETURNS.format("f"),
    "iterator-as-value": RETURNS.format("iter([4])"),
    "generator": "def f(x):\n    yield x + 1\n",
    "coroutine": "async def f(x):\n    return x + 1\n",
    "module-as-value": "import os" + RETURNS.format("os"),
    "its-memory-broken": "import ctypes\n" + RETURNS.format("ctypes.string_at(8)"),
    "small-numbers-changed": "import ctypes\nctypes.memset(id(3) + 24, 4, 1)" + WRONG,
    "ended-by-a-signal": "import os" + RETURNS.format("os.kill(os.getpid(), 9)"),
    "ended-by-a-nameless-signal": "import os" + RETURNS.format("os.kill(os.getpid(), 35)"),
    "channels-closed": "import os\nos.closerange(0, 64)" + WRONG,
    "recursion": RETURNS.format("f(x)"),
    "memory": RETURNS.format("[0] * 10**9"),
    "wide-text": RETURNS.format("'x' * (40 * 2**20)"),
    "unreadable-source": "\0",
    "no-source": "def f(:",
    "deep-source": "(" * 5000,
    "deeper-source": "-" * 200_000 + "1",
    "surrogates": "x = '\ud800'",
    "deep-tuples": "def f(x):\n    for _ in range(10**5): x = (x,)\n    return x",
    "in-itself": "def f(x):\n    x = []\n    x.append(x)\n    return x",
    "many-times-itself": "def f(x):\n    for _ in range(60): x = (x, x)\n    return len(x)",
}


@pytest.mark.parametrize("program", named(PRETENDING))
def test_no_wrong_program_passes(program):
    assert not verdict(program, TEST).passed


LOOSE = {
    "true": "assert f(3)",
    "not": "assert not f(3)",
    "unequal": "assert f(3) != 5",
    "near": "assert abs(f(3) - 4) < 1e-6",
    "within": "assert f(3) in [4]",
    "holds": "assert 4 in [f(3)]",
    "instance": "assert isinstance(f(3), int)",
}


@pytest.mark.parametrize("test", named(LOOSE))
def test_objects_of_the_program_pass_no_loose_test(test):
    program = EQUAL.format(base="object") + RETURNS.format("Equal()")
    assert not verdict(program, test).passed
    assert verdict("def f(x): return x + 1 if 'not' not in globals() else 0", LOOSE["near"]).passed


CATCHING = {
    "exit": "import os\ndef f(x): os._exit(0)",
    "closed": "import os\ndef f(x): os.closerange(0, 64)",
    "garbage": "import os\ndef f(x):\n    for n in range(3, 32):\n"
    "        try: os.write(n, b'x' * 99)\n        except OSError: pass",
}


@pytest.mark.parametrize("program", named(CATCHING))
def test_a_test_that_expects_exceptions_is_not_passed_by_leaving(program):
    for caught in ("Exception", "BaseException"):
        test = f"try:\n    f(1)\nexcept {caught}:\n    pass\nelse:\n    assert False"
        assert not verdict(program, test).passed


def test_an_iteration_of_the_test_is_not_ended_by_the_program():
    for raised in ("StopIteration", "StopAsyncIteration"):
        program = RAISES.format(raised)
        assert not verdict(program, "assert all(map(lambda x: f(x) == x, range(3)))").passed


def test_names_of_the_program_do_not_reach_the_test():
    program = "def abs(x): return 0\ndef helper(x): return 4\ndef check(f): pass\n" + WRONG
    known = "def helper(x): return x + 1\ndef f(x): ..."
    for test in (TEST, "assert abs(f(3) or 0) == 4", "assert f(3) == helper(3)"):
        assert not verdict(program, test, known=known, functions=("f",)).passed


# Bytes on its channel

MESSAGES = {
    "nothing": b"",
    "half-a-length": b"\0\0\0",
    "no-length": bytes(8),
    "longest": b"\xff" * 8,
    "too-long": (16 * 2**20 + 1).to_bytes(8, "big"),
    "half-a-message": (100).to_bytes(8, "big") + b"{",
    **{
        f"text-{n}": len(text).to_bytes(8, "big") + text
        for n, text in enumerate(
            (
                b"null",
                b"[]",
                b"{}",
                b"\xff\xfe",
                b"\xed\xa0\x80",
                b"nan",
                b"1" * 5000,
                b"[" * 100_000,
                b'{"a":' * 100_000,
                b'{"do": "return"}',
                b'{"do": ["return"], "roots": [1], "heap": []}',
                b'{"do": "pass", "roots": [1], "heap": []}',
            )
        )
    },
}
ROOTS = [
    None, 1, [], [1, 2], {}, "x", [{}], [[]], [[[]]], [["at"]], [["at", 0]], [["at", -1]],
    [["at", True]], [["at", 1e9]], [["at", "0"]], [["mine"]], [["mine", -1]], [["mine", None]],
    [["mine", []]], [["yours", 0]], [["yours", -1]], [["yours", {}]], [["yours", "f"]],
    [["else", 1]], [[None, 1]], [["int", "zz"]], [["int", 5]], [["bytes", "0"]], [["bytes", 1]],
    [["range"]], [["range", 1, 2, 0]], [["range", "1"]], [["complex", [], 1]], [["decimal", 1]],
    [["decimal", "x"]], [["fraction", 1, 0]], [["type", "eval"]], [["type", []]],
    [["frozenset", ["at", 0]]], [["items", 1]], [["keys", ["at", 0]]], [[["tuple"], 1]],
]  # fmt: skip
HEAPS = [
    None, {}, "x", [1], [[]], [["list"]], [["list", 1]], [["list", [], 1]], [["else", []]],
    [["dict", [1]]], [["dict", [[["at", 0], 1]]]], [["set", [["at", 0]]]], [["set", 1]],
    [["bytearray", 1]], [["bytearray", "x"]], [["deque", None]], [[[], []]],
]  # fmt: skip
VALUES = [
    *({"do": "return", "roots": roots, "heap": [["list", []]]} for roots in ROOTS),
    *({"do": "return", "roots": [None], "heap": heap} for heap in HEAPS),
    {"do": "raise", "names": 5, "text": 5, "roots": [None], "heap": []},
    {"do": "raise", "names": [5, "x", "eval", "SystemExit"], "roots": [None], "heap": []},
    {"do": "raise", "names": ["A" * 10**6, "\n"], "text": "\n" * 9, "roots": [None], "heap": []},
    {"do": "call", "on": "open", "roots": [["at", 0], ["at", 1]], "heap": [["list", []]] * 2},
    {"do": "call", "on": 0, "roots": [["at", 0], ["at", 1]], "heap": [["list", []], ["dict", []]]},
    {"do": "call", "on": None, "roots": [], "heap": []},
    {"do": "next", "on": [], "roots": [], "heap": []},
    {"do": "stop", "roots": [None], "heap": []},
]
MESSAGES |= {
    f"value-{n}": len(text).to_bytes(8, "big") + text
    for n, text in enumerate(json.dumps(value).encode() for value in VALUES)
}
AT_NIGHT = {f"value-{n}" for n in range(len(VALUES)) if n % 3}
SAYS = """
import os
def f(x):
    for channel in range(3, 32):
        try:
            os.write(channel, {message!r})
        except OSError:
            pass
    os._exit(0)
"""


@pytest.mark.parametrize("message", named(MESSAGES, AT_NIGHT))
def test_any_bytes_are_its_own_verdict(message):
    if len(message) > 50_000:
        message = message[:60_000]  # what fits into a pipe; the rest would be the same
    assert not verdict(SAYS.format(message=message), "f(3)\n" + TEST).passed


def test_arguments_keep_their_kind():
    swapped = {"do": "return", "roots": [None], "heap": [["dict", []], ["list", []], ["set", []]]}
    text = json.dumps(swapped).encode()
    message = len(text).to_bytes(8, "big") + text
    outcome = verdict(SAYS.format(message=message), "given = [3]\nf(given)\nassert given == {}")
    assert outcome.detail.startswith("sent values that are not plain data")


# Out of its process

REACH = """
import ctypes, errno, fcntl, os, resource, shutil, signal, socket, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
reading, writing = os.pipe()
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), 'refused')
def call(number, *arguments):
    checked(libc.syscall(number, *arguments))
try:
    {attempt}
except (OSError, RuntimeError, ValueError):
    pass
else:
    raise SystemError('it was possible')
"""
ATTEMPTS = {
    "look-for-parent": "os.kill(parent, 0)",
    "signal-parent": "os.kill(parent, 10)",
    "signal-first-process": "os.kill(1, 0)",
    "signal-own-group": "os.kill(0, 0)",
    "signal-all": "os.kill(-1, 0)",
    "signal-a-group": "os.killpg(parent, 0)",
    "signal-by-descriptor": "signal.pidfd_send_signal(os.pidfd_open(parent), 0)",
    "own-file-of-parent": "fcntl.fcntl(reading, fcntl.F_SETOWN, parent)",
    "own-file-of-group": "fcntl.fcntl(reading, fcntl.F_SETOWN, -parent)",
    "own-file-of-thread": "fcntl.fcntl(reading, 15, struct.pack('ii', 1, parent))",
    "choose-signal": "fcntl.fcntl(reading, fcntl.F_SETSIG, 9)",
    "ask-for-signals": "fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)",
    "ask-for-signals-too": "fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)",
    "ask-by-ioctl": "fcntl.ioctl(reading, 0x5452, struct.pack('i', 1))",
    "own-by-ioctl": "fcntl.ioctl(reading, 0x8901, struct.pack('i', parent))",
    "own-by-ioctl-of-sockets": "fcntl.ioctl(reading, 0x8902, struct.pack('i', parent))",
    "type-at-a-terminal": "fcntl.ioctl(reading, 0x5412, b'x')",
    "folder-signals": "fcntl.fcntl(os.open('.', 0), fcntl.F_NOTIFY, 1)",
    "lease": "fcntl.fcntl(os.open('x', os.O_CREAT), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "wide-pipe": "fcntl.fcntl(writing, 1031, 2**20)",
    "outlive-parent": "checked(libc.prctl(1, 0, 0, 0, 0))",
    "new-session": "os.setsid()",
    "new-group": "os.setpgid(0, 0)",
    "fork": "os._exit(0) if os.fork() == 0 else None",
    "execute": "os.execv('/bin/true', ['true'])",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "thread": "threading.Thread(target=int).start()",
    "socket": "socket.socket()",
    "pair-of-sockets": "socket.socketpair()",
    "abstract-socket": "socket.socket(socket.AF_UNIX).connect('\\0x')",
    "file-in-memory": "os.memfd_create('x')",
    "limits-of-parent": "resource.prlimit(parent, resource.RLIMIT_CPU, (1, 1))",
    "limits-of-its-own": "resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
    "priority-of-parent": "os.setpriority(os.PRIO_PROCESS, parent, 19)",
    "cores-of-parent": "os.sched_setaffinity(parent, {0})",
    "users-file": "open('/etc/passwd')",
    "own-environment": "open('/proc/self/environ')",
    "memory-of-parent": "open(f'/proc/{parent}/mem')",
    "own-memory-map": "open('/proc/self/maps')",
    "files-of-parent": "os.listdir(f'/proc/{parent}/fd')",
    "root-folder": "os.listdir('/')",
    "temporary-folder": "os.listdir('/tmp')",
    "folder-above": "os.listdir('..')",
    "file-above": "open('../x', 'w')",
    "shared-memory-folder": "open('/dev/shm/x', 'w')",
    "home": "open(os.path.expanduser('~root/.x'), 'w')",
    "library": "open(os.__file__, 'a')",
    "library-folder": "open(os.path.dirname(os.__file__) + '/x.py', 'w')",
    "link": "os.link(os.__file__, 'x')",
    "way-through-a-link": "os.symlink('/etc', 'x'); open('x/passwd')",
    "rights": "os.chmod('.', 0o777)",
    "times": "os.utime('.', (0, 0))",
    "special-file": "os.mknod('x', 0o20666, os.makedev(1, 1))",
    "root": "os.chroot('.')",
    "terminal": "open('/dev/tty')",
    "memory-device": "open('/dev/mem')",
    "whole-disk": "os.sync() or open('/dev/vda')",
    "unlinked-files": "kept = [open('x', 'wb') for _ in range(9) if not os.path.exists('x') or "
    "os.remove('x') is None]; [each.write(bytes(2**20)) or each.flush() for each in kept]",
    "one-large-file": "open('x', 'wb').write(bytes(3 * 2**20))",
    "reserved-space": "os.posix_fallocate(os.open('x', os.O_CREAT | os.O_RDWR), 0, 2**24)",
    "sparse-file": "os.ftruncate(os.open('x', os.O_CREAT | os.O_RDWR), 2**40)",
    "many-small-files": "[open(str(n), 'w').write('x') for n in range(5000)]",
    "many-folders": "[os.mkdir(str(n)) for n in range(5000)]",
    "nested-folders": "[os.mkdir('d') or os.chdir('d') for n in range(5000)]",
    "long-names": "[os.mkdir('\\n\\t\\udcff' * 20 + str(n)) for n in range(5000)]",
    "links-to-nowhere": "[os.symlink('/' + 'x' * 3000, str(n)) for n in range(5000)]",
    "locked-folders": "[os.mkdir(str(n), 0) for n in range(5000)]",
    "many-open-files": "[os.dup(reading) for n in range(500)]",
}


# In CI: the calls by their numbers (below), and files, processes, connections and limits in
# test_sandbox.py. Here they are tried one by one, each in processes of its own.
@pytest.mark.nightly
@pytest.mark.parametrize("attempt", named(ATTEMPTS))
def test_nothing_outside_its_process_is_reached(attempt):
    outcome = verdict(REACH.format(attempt=attempt))
    assert outcome.passed, outcome


def test_every_call_of_the_table_is_refused():
    numbers = seccomp._numbers(seccomp.REFUSED, list(seccomp.MACHINES).index(os.uname().machine))
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"for number in {numbers}:\n"
        "    answer = libc.syscall(number, -1, -1, -1, -1, -1, -1), ctypes.get_errno()\n"
        "    assert answer == (-1, 1), (number, answer)\n"
    )
    assert verdict(program).passed


HANGING = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(30)",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "deaf": "import signal, time\nfor n in range(1, 32):\n"
    "    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\ntime.sleep(30)",
    "silent": "import time\ndef f(x): time.sleep(30)",
    "endless-answer": "def f(x):\n    while True: yield 1",
    "endless-text": "def f(x):\n    while True: print(x)",
    "endless-calls": "def f(x):\n    while True: x.append(1); x.pop()",
}


@pytest.mark.parametrize("program", named(HANGING))
def test_an_endless_program_is_ended(program):
    assert verdict(program, "assert sum(f([])) == 3", SHORT).detail == "not done after 0.5 s"


def test_one_attack_among_others_ends_only_itself():
    right = Trial("def f(x): return x + 1", TEST)
    attacks = ("hard-exit", "verdict-on-every-channel", "ended-by-a-nameless-signal")
    trials = [right]
    for name in attacks:
        trials += [Trial(PRETENDING[name], TEST), right]
    outcomes = run.run_programs(trials, SMALL, workers=2)
    assert [each.passed for each in outcomes] == [n % 2 == 0 for n in range(len(trials))]


def test_a_dead_parent_takes_the_program_with_it(tmp_path):
    """Its process and its test's end with the process that started them, whatever ended that."""
    parent = (
        "from goat_jax.evaluation.sandbox import run\n"
        "from goat_jax.evaluation.sandbox.limits import Limits, Trial\n"
        "order = run._Child.order\n"
        "def shown(self, *args, **kwargs):\n"
        "    order(self, *args, **kwargs); print(self.process.pid, flush=True)\n"
        "run._Child.order = shown\n"
        "run.run_program(Trial('import time; time.sleep(600)', ''), Limits(seconds=600))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ends = [os.pidfd_open(int(process.stdout.readline())) for _ in range(2)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    try:
        for end in ends:
            waiting = select.poll()
            waiting.register(end, select.POLLIN)
            assert waiting.poll(60_000), "it outlives its parent"
    finally:
        for end in ends:
            os.close(end)
