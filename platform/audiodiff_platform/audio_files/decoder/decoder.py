"""The worker's side of the process that decodes: it hands out files, waits, and replaces a process that a file ended."""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audiodiff_core.audio import AudioDecodeError, Samples
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.mel.slices import Slicing
from audiodiff_platform.audio_files.decoder.limits import (
    CPU_SECONDS_PER_SECOND,
    Limits,
    TimeLimit,
    spool_of_items,
    spool_of_slices,
)

PROCESSES_LOST_AT_MOST = 2
FILES_OF_A_PROCESS = 1_000
"""A process is replaced then, so that what the libraries leak does not count against files."""
ANSWER_BYTES_AT_MOST = 1 << 28
WORKED_SHARE = 0.1
"""A process that reaches its time limit was at work if it used this share of it. Else it waited, for storage or for nothing."""
LOOK_S = 0.25
"""Seconds between two looks at the clock while a process decodes."""
ENDING_S = 10.0
"""A process that has closed its pipes is waited for."""
READ_BYTES = 1 << 16
COUNTED_S_AT_MOST = 4 * LOOK_S
"""The most that the time between two looks counts: a worker that was stopped, by Ctrl-Z or with its machine, did not wait for a file meanwhile."""
ENVIRONMENT = frozenset(
    {"PATH", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "TMPDIR", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONUTF8"}
)
"""Variables that the process gets from its worker, besides those of the locale (LC_*). All others, such as credentials, it does not."""


@dataclass(frozen=True)
class SlicedFile:
    """The slices of a file, and their PNGs, which lie in a spool file."""

    spool: Path
    slices: list[dict[str, Any]]

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Each slice (index, start_s, duration_s, reference_db) and its PNG."""
        with self.spool.open("rb") as file:
            for piece in self.slices:
                yield piece, file.read(piece["bytes"])


class Decoder:
    """Decodes files in a process that is replaced when a file ends it, and that ends with its worker.

    Results go through a spool file, so that no file's slices need fit in memory, and none are used of a file that turns out bad at its
    end. Every method raises AudioDecodeError (with `name`) where a file cannot be used, also where it goes beyond `limits`: at once where
    a process works on it for too long, and where two processes in turn end, need too much memory or wait for too long. A worker that is
    killed takes its process along, which blames no file.

    Raises:
        OSError: The storage of the file or of the spool file fails, or processes end before they are given a file.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._process = _Process(self._limits.memory_bytes)
        self._files = 0

    def close(self) -> None:
        """End the process."""
        self._process.end()

    def slices(self, name: str, local: Path, spool: Path, mel: MelConfig, slicing: Slicing) -> SlicedFile:
        """Return the slices of the file `local`, their images in the file `spool`."""
        size = local.stat().st_size
        spool_bytes = spool_of_slices(self._limits.largest_audio(size), mel, slicing)
        request = {
            "kind": "slices",
            **_files(local, spool, spool_bytes),
            "mel": mel.model_dump(),
            "slicing": slicing.model_dump(),
        }
        return SlicedFile(spool, self._result(name, self._limits.time(size, mel, slicing), request))

    def items(
        self, name: str, local: Path, spool: Path, mel: MelConfig, *, with_samples: bool
    ) -> Iterator[tuple[Images, Samples | None]]:
        """Return the image of each slice that prepare takes by default, and its samples if they are wanted; `spool` holds them meanwhile."""
        size = local.stat().st_size
        spool_bytes = spool_of_items(self._limits.largest_audio(size), mel)
        request = {
            "kind": "items",
            **_files(local, spool, spool_bytes),
            "mel": mel.model_dump(),
            "with_samples": with_samples,
        }
        return _read_items(spool, mel, self._result(name, self._limits.time(size, mel), request), with_samples)

    def samples(self, name: str, local: Path, spool: Path, sample_rate: int, longest_s: float) -> Samples:
        """Return the whole file as mono samples (n,) that are not silent; `spool` holds them meanwhile.

        Audio of more than `longest_s` seconds is unusable, too.
        """
        spool_bytes = math.ceil(longest_s * sample_rate) * np.dtype(np.float32).itemsize
        request = {
            "kind": "samples",
            **_files(local, spool, spool_bytes),
            "sample_rate": sample_rate,
            "longest_s": longest_s,
        }
        count = self._result(name, self._limits.time(local.stat().st_size), request)
        samples: Samples = np.fromfile(spool, np.float32, count)
        spool.unlink()
        return samples

    def _result(self, name: str, limit: TimeLimit, request: dict[str, Any]) -> Any:
        """The result of a request about the file `name`, whose limits are added to it."""
        memory_bytes = self._limits.memory_of(limit.size)
        request = {
            **request,
            "audio_bytes": self._limits.largest_audio(limit.size),
            "memory_bytes": memory_bytes,
            "time": asdict(limit),
        }
        if self._files >= FILES_OF_A_PROCESS:
            self._replace()
        self._files += 1
        outcome = self._outcome(name, limit, request)
        for _ in range(PROCESSES_LOST_AT_MOST - 1):
            if isinstance(outcome, Exception):
                outcome = self._outcome(name, limit, request)
        if isinstance(outcome, Exception):
            raise outcome
        if "unusable" in outcome:
            raise AudioDecodeError(name, outcome["unusable"])
        if "machine" in outcome:
            number, file = outcome["machine"]
            raise OSError(number, os.strerror(number), file)
        return outcome["result"]

    def _outcome(self, name: str, limit: TimeLimit, request: dict[str, Any]) -> dict[str, Any] | Exception:
        """The answer to a request, or the error to raise if a second process does no better.

        Raises:
            AudioDecodeError: The file takes too long by its own fault: the process was at work meanwhile.
        """
        try:
            answer = self._process.answer(request, limit)
        except TimeoutError as error:
            was_at_work = self._process.was_at_work
            self._replace()
            if was_at_work:
                raise AudioDecodeError(name, str(error)) from error
            return AudioDecodeError(name, str(error))
        if answer is None:
            was_ready, ended = self._process.is_ready, self._replace()
            if was_ready:
                return AudioDecodeError(name, f"ended {PROCESSES_LOST_AT_MOST} processes that decoded it ({ended})")
            return ChildProcessError(
                f"{PROCESSES_LOST_AT_MOST} processes that decode audio ended at their start ({ended})"
            )
        if "memory" in answer:
            self._replace()
            return AudioDecodeError(name, "needs more memory than a file may take")
        return answer

    def _replace(self) -> str:
        """Start a new process; return how the old one ended."""
        ending = self._process.end()
        self._process = _Process(self._limits.memory_bytes)
        self._files = 0
        return ending


class _Process:
    """A process that decodes, and its pipes."""

    def __init__(self, memory_bytes: int) -> None:
        command = [sys.executable, "-P", "-m", "audiodiff_platform.audio_files.decoder.process", str(memory_bytes)]
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(), start_new_session=True
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._requests, self._answers = self._popen.stdin, self._popen.stdout.fileno()
        self._received = b""
        self.is_ready = False
        self.was_at_work = True
        """False if a process that took too long waited, and did not spend the time on the file."""

    def end(self) -> str:
        """End the process unless it has ended; return how it did."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        status = self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def answer(self, request: dict[str, Any], limit: TimeLimit) -> dict[str, Any] | None:
        """Return the answer to a request, or None where the process ended instead.

        Raises:
            TimeoutError: The process took longer than `limit`.
        """
        if not self.is_ready and self._line(_Clock(math.inf)) is None:
            self._reap()
            return None
        self.is_ready = True
        earlier_s = _cpu_s(self._popen.pid)
        clock, reason = _Clock(limit.before_header), limit.described(None)
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
            while (answer := self._line(clock)) is not None and "stated_s" in answer:
                clock.limit_s, reason = limit.seconds(answer["stated_s"]), limit.described(answer["stated_s"])
        except BrokenPipeError:
            answer = None
        except TimeoutError as error:
            self.was_at_work = _cpu_s(self._popen.pid) - earlier_s > WORKED_SHARE * clock.limit_s
            raise TimeoutError(f"took longer than {clock.limit_s:.0f} s to decode, the limit for {reason}") from error
        if answer is None and self._reap() == -signal.SIGXCPU:
            limit_s = CPU_SECONDS_PER_SECOND * clock.limit_s
            raise TimeoutError(f"took more than {limit_s:.0f} s of processor time to decode, the limit for {reason}")
        return answer

    def _reap(self) -> int | None:
        """The status of a process that closed its end of a pipe, None if it goes on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(ENDING_S)
        return None

    def _line(self, clock: "_Clock") -> dict[str, Any] | None:
        """The next line, or None where the process ended. Raises TimeoutError."""
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while b"\n" not in self._received:
            is_readable = poll.poll(LOOK_S * 1_000)
            clock.check()
            if is_readable:
                part = os.read(self._answers, READ_BYTES)
                if not part or len(self._received) > ANSWER_BYTES_AT_MOST:
                    return None
                self._received += part
        line, self._received = self._received.split(b"\n", 1)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            return None
        return answer


class _Clock:
    """The time that a worker has waited for a file."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._waited_s = 0.0
        self._looked = time.monotonic()

    def check(self) -> None:
        """Raises TimeoutError where the limit is reached."""
        now = time.monotonic()
        self._waited_s += min(now - self._looked, COUNTED_S_AT_MOST)
        self._looked = now
        if self._waited_s >= self.limit_s:
            raise TimeoutError


def _cpu_s(process: int) -> float:
    """Seconds of processor time of a process, where the system states them in /proc; 0 elsewhere."""
    try:
        stated = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    user, system = 11, 12  # places after the name
    return (int(stated[user]) + int(stated[system])) / os.sysconf("SC_CLK_TCK")


def _files(local: Path, spool: Path, spool_bytes: int) -> dict[str, Any]:
    return {"file": str(local), "spool": str(spool), "spool_bytes": spool_bytes}


def _read_items(
    spool: Path, mel: MelConfig, counts: list[int], with_samples: bool
) -> Iterator[tuple[Images, Samples | None]]:
    with spool.open("rb") as file:
        for count in counts:
            image = np.fromfile(file, np.uint8, mel.y_res * mel.x_res).reshape(mel.y_res, mel.x_res)
            yield image, np.fromfile(file, np.float32, count) if with_samples else None


def _environment() -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith("LC_")}
    one_thread: dict[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**given, **one_thread, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
