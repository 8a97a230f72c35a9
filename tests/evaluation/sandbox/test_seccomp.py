"""The system call filter by itself: what it answers, whatever else the kernel would refuse.

In the other tests Landlock refuses much of the same, so a hole in the filter would not be seen.
"""

import errno
import struct

import pytest

from goat_jax.evaluation.sandbox import seccomp
from goat_jax.evaluation.sandbox.seccomp import ALLOW, ERRNO, KILL, MACHINES, filter_program

PID = 7
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
WRITE = {"x86_64": 1, "aarch64": 64}


def answer(machine, number, *arguments, architecture=None):
    """Runs the filter as the kernel would; arguments not given are 0."""
    record = {seccomp.NUMBER: number, seccomp.ARCHITECTURE: architecture or MACHINES[machine]}
    places = (seccomp.FIRST_ARGUMENT, seccomp.SECOND_ARGUMENT, seccomp.THIRD_ARGUMENT)
    record |= dict.fromkeys(places, 0) | dict(zip(places, arguments, strict=False))
    lines = list(struct.iter_unpack("=HBBI", filter_program(PID, machine)))
    place = loaded = 0
    while True:
        operation, if_so, if_not, value = lines[place]
        place += 1
        if operation == seccomp.RETURN:
            return value
        if operation == seccomp.LOAD:
            loaded = record[value]
            continue
        holds = {
            seccomp.EQUAL: loaded == value,
            seccomp.AT_LEAST: loaded >= value,
            seccomp.ANY_BIT: bool(loaded & value),
        }[operation]
        place += if_so if holds else if_not


@pytest.mark.parametrize("machine", MACHINES)
def test_signals_go_to_the_process_itself_alone(machine):
    for number in seccomp._numbers(seccomp.TO_ITSELF, list(MACHINES).index(machine)):
        assert answer(machine, number, PID) == ALLOW
        assert {answer(machine, number, other) for other in (0, 1, 8, 2**32 - 1)} == {EPERM}


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_are_refused_by_the_table(machine):
    for number in seccomp._numbers(seccomp.REFUSED, list(MACHINES).index(machine)):
        assert answer(machine, number) == EPERM
    assert answer(machine, WRITE[machine]) == ALLOW
    assert answer(machine, seccomp.NEWER) == ENOSYS
    assert answer(machine, WRITE[machine], architecture=1) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_files_may_not_ask_for_signals(machine):
    column = list(MACHINES).index(machine)
    fcntl, ioctl = seccomp.FCNTL[column], seccomp.IOCTL[column]
    assert answer(machine, fcntl, 3, seccomp.SETFL, 0) == ALLOW
    assert answer(machine, fcntl, 3, seccomp.SETFL, seccomp.ASYNC) == EPERM
    assert answer(machine, fcntl, 3, 8) == EPERM  # F_SETOWN
    assert answer(machine, ioctl, 3, 0x5401) == ALLOW
    assert answer(machine, ioctl, 3, 0x8901) == EPERM  # FIOSETOWN
