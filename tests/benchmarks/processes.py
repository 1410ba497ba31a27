"""Wall time of commands, and CPU time by the role of their processes."""

import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])}
SECONDS_BETWEEN_LOOKS = 0.25  # one look at all processes takes 5 ms


@dataclass(frozen=True)
class Run:
    """Wall time in seconds, and CPU seconds by role: driver, worker, decoder, Ray."""

    seconds: float
    cpu: Counter[str]

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s (CPU {', '.join(f'{role} {seconds:.1f}' for role, seconds in self.cpu.items())})"


def run(*commands: Sequence[object], checkout: Path = ROOT) -> Run:
    """Run commands of a checkout in parallel and wait for the last command.

    Raises:
        CalledProcessError: A command failed.
    """
    environment = {**ONE_THREAD, "PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "platform")])}
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            [str(part) for part in command],
            cwd=checkout,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for command in commands
    ]
    seen: dict[tuple[int, float], tuple[str, float]] = {}
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=([process.pid for process in processes], seen, over))
    watcher.start()
    errors = [process.communicate()[1] for process in processes]
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    for process, text in zip(processes, errors, strict=True):
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, stderr=text)
    cpu: Counter[str] = Counter()
    for role, used in seen.values():
        cpu[role] += used  # type: ignore[assignment]  # a Counter may hold floats
    return Run(seconds, cpu)


def _watch(pids: Sequence[int], seen: dict[tuple[int, float], tuple[str, float]], over: threading.Event) -> None:
    """Record the role of each process and its CPU time when it was last seen."""
    while not over.wait(SECONDS_BETWEEN_LOOKS):
        for pid in pids:
            try:
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            except psutil.Error:
                continue
            for process in family:
                try:
                    times, command = process.cpu_times(), process.cmdline()
                    if command:  # empty once the process has ended
                        seen[process.pid, process.create_time()] = (
                            "driver" if process.pid == pid else role(command),
                            times.user + times.system,
                        )
                except psutil.Error:
                    continue


def peak_bytes() -> int:
    """Return the peak resident size of this process in bytes.

    `getrusage` would include the peak of the parent process.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def role(command: Sequence[str]) -> str:
    """Return the role of a process of a job, derived from its command line."""
    if command and command[0].startswith("ray::") and "PrepareWorker" in command[0]:
        return "worker"
    return "decoder" if "audiodiff_platform.decoder.process" in command else "Ray"
