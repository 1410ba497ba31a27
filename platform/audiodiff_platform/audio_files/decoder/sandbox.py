"""The confinement of a process that decodes: bounded resources, no new privileges, no network, no other programs or processes.

The system calls are refused by a seccomp filter where the system allows it: on Linux for x86-64 and ARM64, unless the kernel has no
seccomp or a container forbids it. Elsewhere the rest of the confinement holds. Files stay open to the process as to its user.
"""

import ctypes
import errno
import platform
import resource
import struct
import sys
from dataclasses import dataclass
from typing import Any

OPEN_FILES = 64
LARGEST_LIMIT = (1 << 63) - 1

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_ANY, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_OFFSET, ABI_OFFSET, FIRST_ARGUMENT_OFFSET = 0, 4, 16
"""In the data of a system call that a filter reads."""
ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
CLONE_THREAD = 0x00010000
FIRST_X32_CALL = 0x40000000
"""Numbers from here on are those of another ABI of x86-64; on ARM64 there are none."""


@dataclass(frozen=True)
class Abi:
    """The ABI of a machine as a filter sees it: its audit number, and the numbers of system calls."""

    number: int
    clone: int
    refused: tuple[int, ...]
    """The system calls that a decoder does not need: socket, io_uring_setup (a ring makes sockets without `socket`), execve, execveat, fork,
    vfork, kill, ptrace, process_vm_readv, process_vm_writev."""
    clone3: int = 435


ABIS = {
    "x86_64": Abi(0xC000003E, 56, (41, 425, 59, 322, 57, 58, 62, 101, 310, 311)),
    "aarch64": Abi(0xC00000B7, 220, (198, 425, 221, 281, 129, 117, 270, 271)),  # it has no fork and no vfork
}


def confine(memory_bytes: int, memory_bytes_at_most: int) -> None:
    """Confine this process for the rest of its life. It must have no other thread yet: a filter is that of a thread and of those it starts.

    `memory_bytes` holds until `allow` states another limit, up to `memory_bytes_at_most`.
    """
    limits = (
        (resource.RLIMIT_DATA, memory_bytes, memory_bytes_at_most),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
    )
    for kind, most, hard in limits:
        allowed = min(hard, _hard(kind))
        resource.setrlimit(kind, (min(most, allowed), allowed))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        _refuse_calls(libc)


def allow(cpu_s: int, file_bytes: int, memory_bytes: int) -> None:
    """Allow this process so many seconds of processor time from now on, files of so many bytes, and so many bytes of memory."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = (
        (resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_DATA, memory_bytes),
    )
    for kind, most in limits:
        resource.setrlimit(kind, (min(most, _hard(kind)), resource.getrlimit(kind)[1]))


def _hard(kind: int) -> int:
    """The most that this process may allow itself."""
    hard = resource.getrlimit(kind)[1]
    return LARGEST_LIMIT if hard == resource.RLIM_INFINITY else hard


def _refuse_calls(libc: Any) -> None:
    """Give up new privileges, then refuse system calls, as far as the kernel knows of either."""
    zero, one = ctypes.c_ulong(0), ctypes.c_ulong(1)
    libc.prctl(PR_SET_NO_NEW_PRIVS, one, zero, zero, zero)
    abi = ABIS.get(platform.machine())
    if abi is None:
        return
    instructions = _filter(abi)
    content = ctypes.create_string_buffer(b"".join(instructions))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(content)))
    libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), program, zero, zero)


def _filter(abi: Abi) -> list[bytes]:
    """The instructions of a filter that refuses calls of other ABIs, those that `abi` names, and new processes, and allows all others.

    `clone` makes a thread or a process by its flags. The flags of `clone3` lie in memory, which a filter cannot read: the C library uses
    `clone` where `clone3` is absent.
    """
    tests = [(JUMP_IF_AT_LEAST, FIRST_X32_CALL), *((JUMP_IF_EQUAL, number) for number in abi.refused)]
    allow = 7 + len(tests)  # the places of the last instructions
    refuse, absent = allow + 1, allow + 2
    program = [
        (LOAD_WORD, 0, 0, ABI_OFFSET),
        (JUMP_IF_EQUAL, 2, refuse, abi.number),
        (LOAD_WORD, 0, 0, NUMBER_OFFSET),
        *((kind, refuse, place, value) for place, (kind, value) in enumerate(tests, start=4)),
        (JUMP_IF_EQUAL, absent, 4 + len(tests), abi.clone3),
        (JUMP_IF_EQUAL, 5 + len(tests), allow, abi.clone),
        (LOAD_WORD, 0, 0, FIRST_ARGUMENT_OFFSET),
        (JUMP_IF_ANY, allow, refuse, CLONE_THREAD),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ABSENT),
    ]
    jumps = (JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_ANY)
    return [
        struct.pack("@HBBI", kind, *((to - place - 1, other - place - 1) if kind in jumps else (0, 0)), value)
        for place, (kind, to, other, value) in enumerate(program)
    ]
