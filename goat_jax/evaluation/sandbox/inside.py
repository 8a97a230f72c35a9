"""Script of both sandboxed children: it confines itself, then runs the program or its test.

It needs only the standard library. Its order is one JSON object on standard input. On standard
output, either child reports to the parent why it could not be confined, and the test's process
reports its verdict. The program's process closes that stream before the program runs and keeps only
the pair of pipes over which the test calls it.
"""

import base64
import builtins
import ctypes
import json
import os
import resource
import sys
import types
from typing import Any

NEW_NAMESPACES = 0x10000000 | 0x00020000
"""Flags of unshare: a user namespace, which needs no privileges, and a mount namespace in it."""
NOSUID_NODEV_NOEXEC = 2 | 4 | 8
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
BENEATH = 1
SET_PDEATHSIG, SET_NO_NEW_PRIVS, SET_SECCOMP, SECCOMP_FILTER = 1, 38, 22, 2
CAPABILITIES_VERSION = 0x20080522
SIGKILL = 9
BLOCK = 4096
DETAIL = 200
"""Longest detail of a verdict, in characters."""


def checked(result: int, what: str) -> int:
    """Returns a C call's result, or raises `OSError` with its errno if the call failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def limit(order: dict) -> None:
    """Sets the process's resource limits, soft and hard, so that they cannot be raised again."""
    sizes = {
        resource.RLIMIT_CPU: order["cpu_seconds"],
        resource.RLIMIT_AS: order["memory"],
        resource.RLIMIT_FSIZE: order["disk"],
        resource.RLIMIT_NOFILE: order["files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for kind, size in sizes.items():
        resource.setrlimit(kind, (size, size))


def mount_folder(libc: ctypes.CDLL, order: dict) -> bool:
    """Mounts a small in-memory file system over the folder, visible to this process alone.

    Its size bounds all of its content, including unlinked files and folders, and it disappears with
    the process.

    Returns:
        False if the system does not let users create namespaces.
    """
    user, group, folder = os.geteuid(), os.getegid(), os.getcwd()
    if libc.unshare(NEW_NAMESPACES) < 0:
        return False
    size = max(BLOCK, order["disk"])
    options = f"size={size},nr_inodes={max(16, size // BLOCK)},mode=700"
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        return False
    where, kind = os.fsencode(folder), b"tmpfs"
    if libc.mount(kind, where, kind, NOSUID_NODEV_NOEXEC, options.encode()) < 0:
        return False
    os.chdir(folder)
    return True


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """Drops all capabilities for good; no later execve can regain them."""
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    checked(libc.capset(header, none), "capset")
    checked(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def die_with_parent(libc: ctypes.CDLL, parent: int) -> None:
    """Has the kernel kill this process when its parent ends for any reason."""
    checked(libc.prctl(SET_PDEATHSIG, SIGKILL, 0, 0, 0), "parent's death signal")
    if os.getppid() != parent:  # the parent ended before the call, so no signal will come
        os._exit(1)


def confine_files(libc: ctypes.CDLL, order: dict, writable: bool) -> None:
    """Restricts the process by Landlock to the granted paths.

    The current folder is among them if `writable`.
    """
    handled = (ctypes.c_uint64 * len(order["handled"]))(*order["handled"])
    size = ctypes.c_size_t(ctypes.sizeof(handled))
    rules = checked(libc.syscall(CREATE_RULESET, ctypes.byref(handled), size, 0), "landlock")
    for path, rights in order["grants"] + ([order["own"]] if writable else []):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
        checked(libc.syscall(ADD_RULE, rules, BENEATH, rule, 0), f"landlock rule for {path}")
        os.close(place)
    checked(libc.syscall(RESTRICT_SELF, rules, 0), "landlock")
    os.close(rules)


def filter_calls(libc: ctypes.CDLL, order: dict) -> None:
    """Installs the seccomp filter of the order."""
    code = base64.b64decode(order["filter"])
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    program = Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    done = libc.prctl(SET_SECCOMP, SECCOMP_FILTER, ctypes.byref(program), 0, 0)
    checked(done, "seccomp")


def confine(order: dict) -> None:
    """Confines the process for the rest of its life."""
    libc = ctypes.CDLL(None, use_errno=True)
    # The order matters: mounting needs the capabilities of the new namespace, so they are dropped
    # after it, and the filter comes last, because it denies the calls of the steps before.
    limit(order)
    writable = mount_folder(libc, order)
    drop_capabilities(libc)
    die_with_parent(libc, order["parent"])
    confine_files(libc, order, writable)
    filter_calls(libc, order)


def load_own_modules(package: str) -> Any:
    """Imports `peer` without running `goat_jax/__init__`, whose dependencies are not available."""
    for name, folder in (
        ("goat_jax", package),
        ("goat_jax.evaluation.sandbox", f"{package}/sandbox"),
    ):
        module = types.ModuleType(name)
        module.__path__ = [folder]
        sys.modules[name] = module
    from goat_jax.evaluation.sandbox import peer

    return peer


def serve_program(order: dict, peer: Any) -> None:
    """Runs the program, then serves the test's calls of its functions."""
    names = {"__name__": "__main__"}
    end = peer.Peer(*order["pipes"], names)
    error = None
    try:
        exec(compile(order["program"], "<program>", "exec"), names)
    except BaseException as problem:
        error = problem
    try:
        end.reply(error)
        end.serve()
    finally:
        os._exit(1)


def verdict_of(order: dict, peer: Any) -> dict:
    """Runs the test and returns its verdict.

    Names that the test does not define resolve to functions of the program's process.
    """
    end = peer.Peer(*order["pipes"], {})
    detail = ""
    try:
        end.answer([])
        names: dict[str, Any] = {"__name__": "__test__"}
        exec(compile(order["known"], "<known>", "exec"), names)
        test = compile(order["test"], "<test>", "exec")
        stays = (set(names) | set(dir(builtins))) - set(order["functions"])
        names |= {name: peer.RemoteObject(end, name) for name in names_in(test) - stays}
        exec(test, names)
    except BaseException as error:
        kind, text = type(error).__name__, str(error).strip()
        detail = f"{kind}: {text}" if text else kind
    detail = end.breach or detail
    shown = " ".join(detail[:DETAIL].split())
    return {"passed": not detail, "detail": shown, "gone": end.breach == peer.GONE}


def names_in(code: types.CodeType) -> set[str]:
    """Returns all names that a code object uses and that are not local variables."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return set(code.co_names).union(*map(names_in, inner))


def main() -> None:
    """Reads the order, confines the process and runs the program or its test."""
    order = json.loads(sys.stdin.buffer.read())
    parent = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    try:
        peer = load_own_modules(order["package"])
        confine(order)
    except (OSError, ImportError) as error:
        os.write(parent, json.dumps({"refused": str(error)}).encode())
        os._exit(1)
    if order["program"] is not None:
        os.close(parent)  # so that the program cannot write a verdict
        serve_program(order, peer)
    os.write(parent, json.dumps(verdict_of(order, peer)).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
