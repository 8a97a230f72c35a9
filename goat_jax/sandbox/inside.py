"""What runs in the sandboxed child: it confines itself, then runs the program it was sent.

A script of its own that needs the standard library only. It reads one JSON object from standard
input, and answers on standard output with one line: the secret it was given, and what happened. A
program that ends the process before its last line cannot say that it passed.
"""

import base64
import ctypes
import json
import os
import resource
import sys

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
BENEATH = 1
SET_NO_NEW_PRIVS, SET_SECCOMP, SECCOMP_FILTER = 38, 22, 2
CAPABILITIES_VERSION = 0x20080522


def checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def limit(order: dict) -> None:
    sizes = {
        resource.RLIMIT_CPU: order["cpu_seconds"],
        resource.RLIMIT_AS: order["memory"],
        resource.RLIMIT_FSIZE: order["disk"],
        resource.RLIMIT_NOFILE: order["files"],
        resource.RLIMIT_CORE: 0,
    }
    for kind, size in sizes.items():
        resource.setrlimit(kind, (size, size))


def drop_capabilities(libc: ctypes.CDLL) -> None:
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    checked(libc.capset(header, none), "capset")
    checked(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def confine_files(libc: ctypes.CDLL, order: dict) -> None:
    handled = ctypes.c_uint64(order["handled"])
    size = ctypes.c_size_t(ctypes.sizeof(handled))
    rules = checked(libc.syscall(CREATE_RULESET, ctypes.byref(handled), size, 0), "landlock")
    for path, rights in order["grants"]:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
        checked(libc.syscall(ADD_RULE, rules, BENEATH, rule, 0), f"landlock rule for {path}")
        os.close(place)
    checked(libc.syscall(RESTRICT_SELF, rules, 0), "landlock")
    os.close(rules)


def filter_calls(libc: ctypes.CDLL, order: dict) -> None:
    code = base64.b64decode(order["filter"])
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    program = Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    done = libc.prctl(SET_SECCOMP, SECCOMP_FILTER, ctypes.byref(program), 0, 0)
    checked(done, "seccomp")


def run(source: str) -> str:
    """Runs a program as __main__: an empty text if it came to its end, or why it did not."""
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        name = type(error).__name__
        return f"{name}: {error}".splitlines()[0][:200] if str(error) else name
    return ""


def main() -> None:
    order = json.loads(sys.stdin.buffer.read())
    secret, source = order["secret"], order["program"]
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        limit(order)
        drop_capabilities(libc)
        confine_files(libc, order)
        filter_calls(libc, order)
    except OSError as error:
        os.write(answers, json.dumps({"refused": str(error)}).encode())
        return
    detail = run(source)
    os.write(answers, json.dumps({"secret": secret, "detail": detail}).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
