"""What a sandboxed program may use, and what became of it."""

import dataclasses

from goat_jax.errors import UserError

MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """The allowance of one program, which is one process with one thread.

    Attributes:
      seconds: of wall clock, after which it is ended.
      cpu_seconds: of processor time.
      memory: bytes of address space, the interpreter's own among them.
      disk: bytes in its folder.
      files: open at once.

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
class Outcome:
    """What became of a program.

    Attributes:
      passed: it ran to its end without an exception.
      detail: in one line, why it did not.

    >>> Outcome(False, "timed out").passed
    False
    """

    passed: bool
    detail: str = ""
