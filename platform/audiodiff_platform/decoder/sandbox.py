"""Confinement of the process that decodes: resource limits and refused system calls.

The process cannot gain privileges, use the network, start programs or create child processes. A seccomp filter refuses
these system calls on Linux for x86-64 and ARM64, unless the kernel lacks seccomp or a container forbids filters. On
other systems, only the resource limits apply. The process can access all files that its user can access.
"""

import ctypes
import errno
import platform
import resource
import struct
import sys
from dataclasses import dataclass
from typing import Any

MAX_OPEN_FILES = 64
MAX_LIMIT = (1 << 63) - 1

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_ANY, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_OFFSET, ABI_OFFSET, FIRST_ARGUMENT_OFFSET = 0, 4, 16
"""Offsets in `struct seccomp_data`, the input of a filter."""
ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
CLONE_THREAD = 0x00010000
FIRST_X32_CALL = 0x40000000
"""First system call number of the x32 ABI of x86-64. ARM64 has no numbers from here on."""


@dataclass(frozen=True)
class Abi:
    """The numbers of an ABI that a seccomp filter needs.

    Args:
        number: The audit number of the architecture.
        clone: The number of the system call `clone`.
        refused: The numbers of the system calls that are refused: socket, io_uring_setup (which can create sockets
            without `socket`), execve, execveat, fork, vfork, kill, ptrace, process_vm_readv, process_vm_writev.
        clone3: The number of the system call `clone3`.
    """

    number: int
    clone: int
    refused: tuple[int, ...]
    clone3: int = 435


ABIS = {
    "x86_64": Abi(0xC000003E, 56, (41, 425, 59, 322, 57, 58, 62, 101, 310, 311)),
    "aarch64": Abi(0xC00000B7, 220, (198, 425, 221, 281, 129, 117, 270, 271)),  # has neither fork nor vfork
}


def confine(memory_bytes: int, max_memory_bytes: int) -> None:
    """Confine this process permanently.

    Call this function before starting threads: a seccomp filter applies to the calling thread and to threads that it
    starts later.

    Args:
        memory_bytes: The memory limit in bytes until `allow` sets another limit.
        max_memory_bytes: The maximum of the memory limits that `allow` can set, in bytes.
    """
    limits = (
        (resource.RLIMIT_DATA, memory_bytes, max_memory_bytes),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
    )
    for kind, soft, hard in limits:
        allowed = min(hard, _hard_limit(kind))
        resource.setrlimit(kind, (min(soft, allowed), allowed))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        _refuse_calls(libc)


def allow(cpu_s: int, file_bytes: int, memory_bytes: int) -> None:
    """Set resource limits of this process, within its hard limits.

    Args:
        cpu_s: The additional processor time in seconds, starting now.
        file_bytes: The maximum size of a written file in bytes.
        memory_bytes: The maximum memory in bytes.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = (
        (resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_DATA, memory_bytes),
    )
    for kind, soft in limits:
        resource.setrlimit(kind, (min(soft, _hard_limit(kind)), resource.getrlimit(kind)[1]))


def _hard_limit(kind: int) -> int:
    hard = resource.getrlimit(kind)[1]
    return MAX_LIMIT if hard == resource.RLIM_INFINITY else hard


def _refuse_calls(libc: Any) -> None:
    """Give up new privileges, then install the filter. Kernels without support ignore these calls."""
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
    """Return the instructions of a filter that refuses new processes and the calls in `abi.refused`.

    The filter also refuses all system calls of other ABIs.

    The flags of `clone` determine whether it creates a thread or a process. A filter cannot read the flags of `clone3`,
    which are in memory. The filter therefore reports `clone3` as absent, and the C library falls back to `clone`.
    """
    tests = [(JUMP_IF_AT_LEAST, FIRST_X32_CALL), *((JUMP_IF_EQUAL, number) for number in abi.refused)]
    allow = 7 + len(tests)  # indices of the last three instructions
    refuse, absent = allow + 1, allow + 2
    program = [
        (LOAD_WORD, 0, 0, ABI_OFFSET),
        (JUMP_IF_EQUAL, 2, refuse, abi.number),
        (LOAD_WORD, 0, 0, NUMBER_OFFSET),
        *((kind, refuse, index, value) for index, (kind, value) in enumerate(tests, start=4)),
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
        struct.pack("@HBBI", kind, *((if_true - index - 1, if_false - index - 1) if kind in jumps else (0, 0)), value)
        for index, (kind, if_true, if_false, value) in enumerate(program)
    ]
