"""Landlock rules for a sandboxed program: the files that it may access, and its rights to them.

Source: the kernel's documentation, userspace-api/landlock, and linux/landlock.h.
"""

import ctypes
import sys
import sysconfig
from pathlib import Path

CREATE_RULESET = 444
"""Number of landlock_create_ruleset on every architecture; the other two calls follow it."""
VERSION_FLAG = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
FIRST_RIGHTS = 13
"""Number of rights of version 1: the four above, and to remove and create every kind of file."""
RIGHTS = {2: 14, 3: 15, 4: 15, 5: 16}
"""Version -> its number of rights; it adds links across folders, truncation and device control."""

READ = EXECUTE | READ_FILE | READ_DIR
MAKE_DEVICES = (1 << 6) | (1 << 11)
MAKE_SOCKETS = 1 << 9
"""Rights that are not granted even in the program's folder, like `MAKE_DEVICES`."""
NETWORK_VERSION, ALL_NETWORK = 4, 3
"""Version from which TCP can be blocked, and the bits of its rights: to bind and to connect."""
SCOPE_VERSION, ALL_SCOPES = 6, 3
"""Version from which abstract sockets and signals can be scoped, and the bits of both scopes."""


def abi() -> int:
    """Returns this kernel's Landlock version; 0 if it has none or it is switched off.

    >>> abi() >= 0
    True
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG))


def handled(version: int) -> int:
    """Returns all file rights of a version as bits; a right that no rule grants is denied.

    >>> handled(1), handled(3)
    (8191, 32767)
    """
    count = RIGHTS.get(min(version, max(RIGHTS)), FIRST_RIGHTS)
    return (1 << count) - 1


def ruleset(version: int) -> list[int]:
    """Returns all that a version can deny: file rights, network rights and scopes, as bits.

    >>> ruleset(3), ruleset(4), ruleset(7)
    ([32767], [32767, 3], [65535, 3, 3])
    """
    fields = [handled(version)]
    if version >= NETWORK_VERSION:
        fields.append(ALL_NETWORK)
    if version >= SCOPE_VERSION:
        fields.append(ALL_SCOPES)
    return fields


def own_rights(version: int) -> int:
    """Returns the rights to a program's folder: all but making devices or sockets and executing.

    >>> own_rights(1) & EXECUTE
    0
    """
    return handled(version) & ~(EXECUTE | MAKE_DEVICES | MAKE_SOCKETS)


def grants() -> list[tuple[str, int]]:
    """Returns paths and their rights: the files that Python reads, and two devices.

    >>> ("/dev/null", READ_FILE | WRITE_FILE) in grants()
    True
    """
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    folders |= {str(Path(sys.base_prefix) / "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    folders |= {"/usr/share/zoneinfo"}
    granted = [(path, READ) for path in sorted(folders) if path and Path(path).is_dir()]
    files = {"/dev/null": READ_FILE | WRITE_FILE, "/dev/urandom": READ_FILE}
    granted += [(path, rights) for path, rights in files.items() if Path(path).exists()]
    return granted
