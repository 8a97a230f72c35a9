"""Which files a sandboxed program may touch: rights and rules for Linux's Landlock.

Source: the kernel's documentation, userspace-api/landlock, and linux/landlock.h.
"""

import ctypes
import sys
import sysconfig
from pathlib import Path

CREATE_RULESET = 444
"""The system call's number, the same on every machine; two more follow it."""
VERSION_FLAG = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
FIRST_RIGHTS = 13
"""Rights of version 1: these, and to remove and make every kind of file."""
RIGHTS = {2: 14, 3: 15, 4: 15, 5: 16}
"""Version -> how many rights it knows: linking across folders, truncation, device control."""

READ = EXECUTE | READ_FILE | READ_DIR
MAKE_DEVICES = (1 << 6) | (1 << 11)
MAKE_SOCKETS = 1 << 9
"""Not granted even in the program's own folder."""


def abi() -> int:
    """The version of Landlock that this kernel has; 0 if it has none or it is switched off.

    >>> abi() >= 0
    True
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG))


def handled(version: int) -> int:
    """All rights of a version, as bits: what no rule grants is refused.

    >>> handled(1), handled(3)
    (8191, 32767)
    """
    count = RIGHTS.get(min(version, max(RIGHTS)), FIRST_RIGHTS)
    return (1 << count) - 1


def own_rights(version: int) -> int:
    """What a program may do in its own folder: everything but devices, sockets and running files.

    >>> own_rights(1) & EXECUTE
    0
    """
    return handled(version) & ~(EXECUTE | MAKE_DEVICES | MAKE_SOCKETS)


def grants(version: int) -> list[tuple[str, int]]:
    """Paths and their rights: what the Python interpreter reads, and the folder it starts in.

    >>> ("/dev/null", READ_FILE | WRITE_FILE) in grants(3)
    True
    """
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    folders |= {str(Path(sys.base_prefix) / "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    folders |= {"/usr/share/zoneinfo"}
    found = [(path, READ) for path in sorted(folders) if path and Path(path).is_dir()]
    files = {"/dev/null": READ_FILE | WRITE_FILE, "/dev/urandom": READ_FILE}
    found += [(path, rights) for path, rights in files.items() if Path(path).exists()]
    return [*found, (".", own_rights(version))]
