"""The confinement of a process that decodes: bounded resources, no new privileges, no network, no other programs.

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
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_OFFSET, ABI_OFFSET = 0, 4
"""In the data of a system call that a filter reads."""
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
FIRST_X32_CALL = 0x40000000
"""Numbers from here on are those of another ABI of x86-64; on ARM64 there are none."""


@dataclass(frozen=True)
class Abi:
    """What a filter needs to know of a machine: the audit number of its ABI, and the numbers of system calls."""

    number: int
    socket: int
    execve: int
    execveat: int
    io_uring_setup: int = 425

    @property
    def refused(self) -> tuple[int, ...]:
        """The system calls that a decoder does not need. A ring makes sockets without the call `socket`."""
        return self.socket, self.execve, self.execveat, self.io_uring_setup


ABIS = {
    "x86_64": Abi(0xC000003E, socket=41, execve=59, execveat=322),
    "aarch64": Abi(0xC00000B7, socket=198, execve=221, execveat=281),
}


def confine(memory_bytes: int) -> None:
    """Confine this process for the rest of its life. It must have no other thread yet: a filter is that of a thread and of those it starts."""
    for kind, most in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_NOFILE, OPEN_FILES), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        _refuse_calls(libc)


def allow(cpu_s: int, file_bytes: int) -> None:
    """Allow this process so many seconds of processor time from now on, and files of so many bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    for kind, most in ((resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_s), (resource.RLIMIT_FSIZE, file_bytes)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (min(most, LARGEST_LIMIT if hard == resource.RLIM_INFINITY else hard), hard))


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
    """The instructions of a filter that refuses calls of other ABIs and those that `abi` names, and allows all others."""
    tests = [(JUMP_IF_AT_LEAST, FIRST_X32_CALL), *((JUMP_IF_EQUAL, number) for number in abi.refused)]
    instructions = [(LOAD_WORD, 0, 0, ABI_OFFSET), (JUMP_IF_EQUAL, 0, len(tests) + 2, abi.number), (LOAD_WORD, 0, 0, NUMBER_OFFSET)]
    instructions += [(kind, len(tests) - place, 0, value) for place, (kind, value) in enumerate(tests)]
    instructions += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    return [struct.pack("@HBBI", *instruction) for instruction in instructions]
