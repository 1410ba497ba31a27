"""The child process that decodes, from the side of the worker: start, requests, time limit and end."""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

from audiodiff_platform.decoder.limits import CPU_SECONDS_PER_SECOND, TimeLimit

MAX_ANSWER_BYTES = 1 << 28
MIN_CPU_SHARE = 0.1
"""Minimum ratio of processor time to time limit for which a timeout is the fault of the file.

A process with a smaller ratio was waiting, for example for storage.
"""
POLL_S = 0.25
"""Interval between checks of the clock while a process decodes."""
MAX_COUNTED_S = 4 * POLL_S
"""Maximum time counted between two checks. The interval is longer only if the worker was suspended (Ctrl-Z, sleep)."""
EXIT_TIMEOUT_S = 10.0
"""Time to wait for the exit of a process that closed its pipes."""
READ_BYTES = 1 << 16
ENVIRONMENT = frozenset(
    {"PATH", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "TMPDIR", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONUTF8"}
)
"""Environment variables that the child process inherits, besides LC_*. Other variables may hold credentials."""


class ChildProcess:
    """A child process that runs the module `process`, and its pipes.

    Args:
        memory_bytes: The initial memory limit of the process in bytes. Each request states its own limit.

    Attributes:
        is_ready: True once the process has started completely.
        was_at_work: False after a timeout in which the process was waiting, so that the file is not at fault.
    """

    def __init__(self, memory_bytes: int) -> None:
        command = [sys.executable, "-P", "-m", "audiodiff_platform.decoder.process", str(memory_bytes)]
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(), start_new_session=True
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._requests, self._answers = self._popen.stdin, self._popen.stdout.fileno()
        self._received = b""
        self.is_ready = False
        self.was_at_work = True
        self._finalizer = weakref.finalize(self, _kill, self._popen)  # also runs at the exit of the worker

    def end(self) -> str:
        """Kill the process if it is running. Return its signal or exit status as text."""
        self._finalizer()
        status = self._popen.wait()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def answer(self, request: dict[str, Any], limit: TimeLimit) -> dict[str, Any] | None:
        """Send a request and return the answer, or None if the process ended without an answer.

        Args:
            request: The request, as described in `process`.
            limit: The time limit of the request.

        Raises:
            TimeoutError: The process exceeded `limit`.
        """
        if not self.is_ready and self._line(_Clock(math.inf)) is None:
            self._exit_status()
            return None
        self.is_ready = True
        earlier_s = _cpu_s(self._popen.pid)
        clock, basis = _Clock(limit.before_header), limit.basis(None)
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
            while (answer := self._line(clock)) is not None and "stated_s" in answer:
                clock.limit_s, basis = limit.seconds(answer["stated_s"]), limit.basis(answer["stated_s"])
        except BrokenPipeError:
            answer = None
        except TimeoutError as error:
            self.was_at_work = _cpu_s(self._popen.pid) - earlier_s > MIN_CPU_SHARE * clock.limit_s
            raise TimeoutError(f"took longer than {clock.limit_s:.0f} s to decode, the limit for {basis}") from error
        if answer is None and self._exit_status() == -signal.SIGXCPU:
            limit_s = CPU_SECONDS_PER_SECOND * clock.limit_s
            raise TimeoutError(f"took more than {limit_s:.0f} s of processor time to decode, the limit for {basis}")
        return answer

    def _exit_status(self) -> int | None:
        """Wait for the exit of a process that closed its pipe; return None if it keeps running."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(EXIT_TIMEOUT_S)
        return None

    def _line(self, clock: "_Clock") -> dict[str, Any] | None:
        """Return the next line of the process, or None if the process ended or the line is not valid.

        Raise TimeoutError at the limit of `clock`.
        """
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while b"\n" not in self._received:
            is_readable = poll.poll(POLL_S * 1_000)
            clock.check()
            if is_readable:
                part = os.read(self._answers, READ_BYTES)
                if not part or len(self._received) > MAX_ANSWER_BYTES:
                    return None
                self._received += part
        line, self._received = self._received.split(b"\n", 1)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            return None
        return answer


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and close its pipes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


class _Clock:
    """The time that the worker has waited for a file."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._waited_s = 0.0
        self._checked = time.monotonic()

    def check(self) -> None:
        """Add the time since the last check. Raise TimeoutError if the limit is reached."""
        now = time.monotonic()
        self._waited_s += min(now - self._checked, MAX_COUNTED_S)
        self._checked = now
        if self._waited_s >= self.limit_s:
            raise TimeoutError


def _cpu_s(process: int) -> float:
    """Return the processor time of a process in seconds, or 0 on systems without /proc."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    user, system = 11, 12  # positions after the name of the program, see proc(5)
    return (int(fields[user]) + int(fields[system])) / os.sysconf("SC_CLK_TCK")


def _environment() -> dict[str, str]:
    """Return the environment of the child process."""
    inherited = {name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith("LC_")}
    one_thread: dict[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**inherited, **one_thread, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
