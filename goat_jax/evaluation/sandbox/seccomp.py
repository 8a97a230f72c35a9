"""System call filter as the bytes of a classic BPF program (linux/seccomp.h, linux/bpf.h).

The numbers are from the kernel's tables (asm/unistd_64.h; asm-generic/unistd.h for 64-bit ARM).
"""

import errno
import struct
from collections.abc import Iterable, Mapping

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
ALLOWED = (RETURN, 0, 0, ALLOW)
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT, THIRD_ARGUMENT = 0, 4, 16, 24, 32
"""Byte offsets in the kernel's record of a call that the filter reads (struct seccomp_data)."""

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine -> its architecture code in the filter, in the order of the columns of `REFUSED`."""

NEWER = 451
"""First number of the system calls that are newer than this table, which fail with ENOSYS."""

# fmt: off
REFUSED: dict[str, tuple[int, int | None]] = {
    # network
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    # processes and threads
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "execve": (59, 221),
    "execveat": (322, 281), "clone3": (435, 435), "setpgid": (109, 154), "setsid": (112, 157),
    # other processes
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    # limits and rights
    "setrlimit": (160, 164), "prlimit64": (302, 261), "setuid": (105, 146), "setgid": (106, 144),
    "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147),
    "setresgid": (119, 149), "setgroups": (116, 159), "setfsuid": (122, 151),
    "setfsgid": (123, 152), "capset": (126, 91),
    # file operations that Landlock does not cover
    "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "flock": (73, 32), "chroot": (161, 51),
    "mknod": (133, None), "mknodat": (259, 33), "inotify_init": (253, None),
    "inotify_init1": (294, 26), "fanotify_init": (300, 262), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # memory outside the limit
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "mlock": (149, 228),
    "mlock2": (325, 284), "mlockall": (151, 230),
    # kernel interfaces
    "prctl": (157, 167), "seccomp": (317, 277), "sync": (162, 81), "syncfs": (306, 267),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_setup": (206, 0), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "open_tree": (428, 428), "move_mount": (429, 429),
    "mount_setattr": (442, 442), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142),
    "sethostname": (170, 161), "setdomainname": (171, 162), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "acct": (163, 89), "settimeofday": (164, 170),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "clock_settime": (227, 112),
    "syslog": (103, 116), "personality": (135, 92), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "vhangup": (153, 58), "lookup_dcookie": (212, 18),
}
# fmt: on
"""Denied call -> its numbers on x86-64 and 64-bit ARM, None if the machine does not have it."""

TO_ITSELF: dict[str, tuple[int, int | None]] = {"kill": (62, 129), "tgkill": (234, 131)}
"""Calls that send signals -> their numbers; a process may only signal itself."""

FCNTL, FCNTL_COMMANDS = (72, 25), (0, 1, 2, 3, 1030)
"""Numbers of fcntl, and the commands that are allowed: F_DUPFD, F_GETFD, F_SETFD, F_GETFL and
F_DUPFD_CLOEXEC. Others can choose the process that a file's signals go to."""
SETFL, ASYNC = 4, 0x2000
"""The fcntl command that sets a file's flags, allowed without O_ASYNC, which requests signals."""
IOCTL, IOCTL_COMMANDS = (16, 29), (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""Numbers of ioctl, and the commands that are allowed: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO,
FIONCLEX and FIOCLEX."""


def filter_program(pid: int, name: str) -> bytes:
    """Builds the filter for one process.

    Denied calls fail with EPERM, calls newer than the table fail with ENOSYS, and a call by another
    architecture's table kills the process.

    Args:
      pid: the process's id, the only one that it may signal.
      name: the machine's name, a key of `MACHINES`.

    >>> len(filter_program(1, "x86_64")) % 8
    0
    """
    column = list(MACHINES).index(name)
    refuse = (RETURN, 0, 0, ERRNO | errno.EPERM)
    code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, MACHINES[name]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, NEWER),  # this also covers the x32 calls of x86-64, numbered far above
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
    ]
    for number in _numbers(REFUSED, column):
        code += [(EQUAL, 0, 1, number), refuse]
    for number in _numbers(TO_ITSELF, column):
        code += _only(number, [(LOAD, 0, 0, FIRST_ARGUMENT), *_allowed([pid]), refuse])
    command = (LOAD, 0, 0, SECOND_ARGUMENT)
    quiet_flags = [
        (EQUAL, 0, 3, SETFL),
        (LOAD, 0, 0, THIRD_ARGUMENT),
        (ANY_BIT, 1, 0, ASYNC),
        ALLOWED,
    ]
    code += _only(FCNTL[column], [command, *_allowed(FCNTL_COMMANDS), *quiet_flags, refuse])
    code += _only(IOCTL[column], [command, *_allowed(IOCTL_COMMANDS), refuse])
    code.append(ALLOWED)
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def _only(number: int, then: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Guards instructions so that other calls skip them, with the call's number still loaded."""
    return [(EQUAL, 0, len(then), number), *then]


def _allowed(values: Iterable[int]) -> list[tuple[int, int, int, int]]:
    """Returns instructions that allow the call if the loaded number is one of the values."""
    return [line for value in values for line in ((EQUAL, 0, 1, value), ALLOWED)]


def _numbers(table: Mapping[str, tuple[int, int | None]], column: int) -> list[int]:
    return [number for numbers in table.values() if (number := numbers[column]) is not None]
