"""Resource limits of a sandboxed program, its test, and the verdict on it."""

import dataclasses

from goat_jax.errors import UserError

MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Resource limits of one program, which is one process with one thread.

    Attributes:
      seconds: the wall-clock seconds of the program and its test, after which both are killed.
      cpu_seconds: the seconds of processor time.
      memory: the bytes of address space, including the interpreter's.
      disk: the bytes in its folder, which is in memory; open files count until they are closed.
      files: the number of files open at once.

    Raises:
      UserError: a limit is not above 0.

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
    """A program and its test, which runs outside of the program's process.

    Attributes:
      program: the program's source code, which is untrusted.
      test: source code that raises an exception if the program is wrong. Names that nothing else
        defines are functions of the program, which return plain values or raise exceptions.
      known: trusted definitions that the test may use.
      functions: names that the test takes from the program even if `known` defines them.
      setup: trusted code that runs after the program, in its process. It can create objects of the
        program's classes that the test passes to the program's functions.
    """

    program: str
    test: str
    known: str = ""
    functions: tuple[str, ...] = ()
    setup: str = ""


@dataclasses.dataclass(frozen=True)
class ProgramResult:
    """The verdict on a program.

    Attributes:
      passed: whether its test ran to its end without an exception.
      detail: the reason that it did not, in one line; empty if it passed.

    >>> ProgramResult(False, "timed out").passed
    False
    """

    passed: bool
    detail: str = ""
