"""Runs untrusted (model-written) programs in a confined process and tests them from another one.

A program only computes. Its test runs in a second process. That process calls the program's
functions over a pair of pipes and compares the results, which are plain values (`values`), never
objects of the program. Whatever the program does in its process, it cannot make the test pass
(`peer`).

Both processes are confined with Landlock (Linux 5.13 and later) and seccomp, as root or not, on
x86-64 or 64-bit ARM (the ARM table of system calls is from the kernel's headers and untested). On
any other system `check_sandbox` raises an error. Before it runs any program, a child process

- limits its CPU seconds, memory, file size and open files (setrlimit);
- mounts a small in-memory file system over its folder, which bounds everything it can write and
  disappears with it (a mount namespace; if users may not create one, the child can write nothing);
- drops all capabilities and the means to regain them (capset, PR_SET_NO_NEW_PRIVS);
- has the kernel kill it when its parent ends (PR_SET_PDEATHSIG);
- restricts itself to reading the Python library and writing to its folder, and to signals inside
  the sandbox (Landlock, as far as the kernel's version supports it);
- blocks the system calls that open sockets, start processes or threads, signal other processes,
  redirect a file's signals to other processes, run other programs, change owners, modes, times or
  limits, or use io_uring, ptrace, shared memory or namespaces (seccomp).

The parent kills both processes when their time is over. The sandbox is not a virtual machine: a
vulnerability of the kernel is a vulnerability of the sandbox.
"""
