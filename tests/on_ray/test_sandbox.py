"""Operations of a confined process, tried in a real process."""

import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from audiodiff_platform.decoder.sandbox import MAX_OPEN_FILES

MEMORY_BYTES, MEMORY_BYTES_AT_MOST = 512 << 20, 640 << 20
RAW_CALL = (
    "import ctypes; ctypes.CDLL(None, use_errno=True).syscall({}, 1, None); raise OSError(ctypes.get_errno(), '')"
)
IO_URING_SETUP = 425
# On other machines the kernel refuses this ABI with another error.
X32_GETPID = {"x86_64": [RAW_CALL.format(0x40000000 + 39)]}


def _confined(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    imports = "import os, resource, socket\nfrom audiodiff_platform.decoder.sandbox import allow, confine"
    confined = f"{imports}\nconfine({MEMORY_BYTES}, {MEMORY_BYTES_AT_MOST})\n{code}"
    return subprocess.run(
        [sys.executable, "-c", confined], check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.socket(socket.AF_INET)",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_UNIX)",
        "socket.create_connection(('127.0.0.1', 9))",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.fork()",
        "os.kill(os.getppid(), 0)",
        RAW_CALL.format(IO_URING_SETUP),
        *X32_GETPID.get(platform.machine(), []),
    ],
)
def test_sockets_and_programs_are_refused(attempt: str, tmp_path: Path) -> None:
    tried = _confined(attempt, tmp_path)
    assert "PermissionError: [Errno 1]" in tried.stderr
    assert tried.returncode == 1


def test_a_thread_is_confined_as_its_process(tmp_path: Path) -> None:
    code = "import threading\nthread = threading.Thread(target=socket.socket)\nthread.start()\nthread.join()"
    assert "PermissionError: [Errno 1]" in _confined(code, tmp_path).stderr


def test_files_and_threads_are_not_refused(tmp_path: Path) -> None:
    code = (
        "import threading\n"
        "thread = threading.Thread(target=lambda: open('written', 'w').write('yes'))\n"
        "thread.start()\nthread.join()\nprint(open('written').read())"
    )
    assert _confined(code, tmp_path).stdout == "yes\n"


def test_resources_are_bounded(tmp_path: Path) -> None:
    code = (
        "print([resource.getrlimit(kind) for kind in "
        "(resource.RLIMIT_DATA, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)])"
    )
    assert (
        _confined(code, tmp_path).stdout
        == f"{[(MEMORY_BYTES, MEMORY_BYTES_AT_MOST), (MAX_OPEN_FILES, MAX_OPEN_FILES), (0, 0)]}\n"
    )
    assert "MemoryError" in _confined(f"bytearray({MEMORY_BYTES})", tmp_path).stderr
    assert (
        _confined(f"allow(60, 100, 1 << 40)\nprint(len(bytearray({MEMORY_BYTES})))", tmp_path).stdout
        == f"{MEMORY_BYTES}\n"
    )
    assert "MemoryError" in _confined(f"allow(60, 100, 1 << 40)\nbytearray({MEMORY_BYTES_AT_MOST})", tmp_path).stderr


def test_lower_limits_of_the_worker_hold(tmp_path: Path) -> None:
    code = "print([resource.getrlimit(kind) for kind in (resource.RLIMIT_DATA, resource.RLIMIT_NOFILE)])"
    lower = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_DATA, ({MEMORY_BYTES // 2},) * 2)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))"
    )
    confined = (
        f"{lower}\nfrom audiodiff_platform.decoder.sandbox import confine\n"
        f"confine({MEMORY_BYTES}, {MEMORY_BYTES_AT_MOST})\n{code}"
    )
    tried = subprocess.run(
        [sys.executable, "-c", confined], check=True, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert tried.stdout == f"{[(MEMORY_BYTES // 2,) * 2, (32, 32)]}\n"


def test_processor_time_is_renewed_and_ends_the_process(tmp_path: Path) -> None:
    code = "import time\nfor _ in range(2):\n    allow(1, 100, 1 << 30)\n"
    code += "    end = time.process_time() + {}\n    while time.process_time() < end: pass\nprint('done')"
    assert _confined(code.format(0.7), tmp_path).stdout == "done\n"
    assert _confined(code.format(60), tmp_path).returncode == -signal.SIGXCPU


def test_files_are_bounded(tmp_path: Path) -> None:
    tried = _confined("allow(60, 1_000, 1 << 30)\nwith open('large', 'wb') as file: file.write(bytes(1_001))", tmp_path)
    assert "OSError: [Errno 27] File too large" in tried.stderr
    assert (tmp_path / "large").stat().st_size == 1_000
    assert (
        _confined(
            "allow(1 << 70, 1 << 70, 1 << 70)\nprint(resource.getrlimit(resource.RLIMIT_FSIZE)[0] > 1 << 62)", tmp_path
        ).stdout
        == "True\n"
    )
