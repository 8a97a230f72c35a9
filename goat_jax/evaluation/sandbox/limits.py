"""A sandboxed program's allowance, its test and the verdict on it."""

import dataclasses

from goat_jax.errors import UserError

MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """The allowance of one program, which is one process with one thread.

    Attributes:
      seconds: wall-clock time of the program and its test, after which both are ended.
      cpu_seconds: processor time.
      memory: bytes of address space, the interpreter's own among them.
      disk: bytes in its folder, which is in memory; open files count until they are closed.
      files: number of files open at once.

    >>> Limits(seconds=0)
    Traceback (most recent call last):
    goat_jax.errors.UserError: sandbox limit seconds 0 must be above 0
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory: int = 1024 * MEBIBYTE
    disk: int = 16 * MEBIBYTE
    files: int = 32

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                value = getattr(self, field.name)
                raise UserError(f"sandbox limit {field.name} {value} must be above 0")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A program and the test that judges it, from outside of the program's process.

    Attributes:
      program: source code, which nobody has read.
      test: source code that raises if the program is wrong. Names that nothing else defines are
        functions of the program; what they return are plain values, or they raise.
      known: trusted definitions that the test may use.
      functions: names that the test takes from the program even where `known` defines them.
      setup: trusted code that runs behind the program, in its process: to make objects of its
        classes that the test hands to its functions.
    """

    program: str
    test: str
    known: str = ""
    functions: tuple[str, ...] = ()
    setup: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The verdict on a program.

    Attributes:
      passed: its test came to its end without an exception.
      detail: in one line, why it did not.

    >>> Outcome(False, "timed out").passed
    False
    """

    passed: bool
    detail: str = ""
