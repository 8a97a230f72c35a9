"""Runs programs that nobody has read: a child process with nothing but its own folder.

What protects, and where: Linux on x86-64 or 64-bit ARM (its table of calls is from the kernel's
headers, not tried) with Landlock (5.13 and later) and seccomp, as root or not. Anywhere else
`check_sandbox` refuses. The child, before it runs the program,

- limits its own CPU seconds, memory, file size and open files (setrlimit);
- gives up all capabilities and the way back to them (capset, PR_SET_NO_NEW_PRIVS);
- may from then on read the Python library and write its own folder, nothing else (Landlock);
- can neither open sockets, start processes or threads, signal others, run other programs, change
  owners, modes, times or limits, nor use io_uring, ptrace, shared memory or namespaces (seccomp).

The parent ends it when its time is over or its folder grows too large. It is no virtual machine: a
hole in the kernel would be one here too.
"""
