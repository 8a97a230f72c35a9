"""Runs untrusted (model-written) programs in a confined process, judged by another one.

A program only computes. Its test runs in a second process, which calls the program's functions over
a pair of pipes and compares what comes back: plain values (`values`), never an object of the
program. Whatever the program does in its own process, it cannot make the test pass (`peer`).

Both processes are confined, on Linux for x86-64 or 64-bit ARM (whose table of calls is from the
kernel's headers, not tried) with Landlock (5.13 and later) and seccomp, as root or not. Anywhere
else `check_sandbox` refuses. A child, before it runs anything,

- limits its own CPU seconds, memory, file size and open files (setrlimit);
- mounts a small file system in memory over its folder, which bounds what it can write by any means
  and is gone with it (a namespace of mounts; where users may not make one, it can write nothing);
- gives up all capabilities and the way back to them (capset, PR_SET_NO_NEW_PRIVS);
- has the kernel end it when its parent ends (PR_SET_PDEATHSIG);
- may from then on read the Python library and write its own folder, nothing else, and signal
  nothing outside (Landlock, as far as the kernel's version goes);
- can neither open sockets, start processes or threads, signal others, have signals sent by a file's
  owner, run other programs, change owners, modes, times or limits, nor use io_uring, ptrace, shared
  memory or namespaces (seccomp).

The parent ends both when their time is over. It is no virtual machine: a hole in the kernel would
be one here too.
"""
