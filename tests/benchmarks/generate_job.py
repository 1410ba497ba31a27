"""Runs of jobs/generate.py, with the memory of driver and workers over time.

Everything is seen from outside: the titles that Ray gives to its processes, and the files of the output folder.
"""

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from audiodiff_core.checkpoint import ModelRecord, save_model
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, build_network
from audiodiff_platform.storage.commits import SUCCESS
from tests.benchmarks.processes import ONE_THREAD, ROOT

MEL = MelConfig(x_res=64, y_res=64, hop_length=1_024)
WORKER = "GenerateWorker"
AT_WORK = ".submit"  # in the title of a worker that runs a shard; the title `.__init__` means that it loads the model
SECONDS_BETWEEN_TITLES = 0.1
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Look:
    """Memory of a process at one time, in bytes.

    Attributes:
        loops: Number of loops that were finished.
        resident: Resident set size.
        own: Unique set size: the memory that the end of the process would free.
    """

    loops: int
    resident: int
    own: int


@dataclass
class JobRun:
    """Times and memory of a job.

    Attributes:
        loops: Number of loops.
        seconds: Duration of the command, including the start of Ray, of the workers and of the interpreter.
        working_seconds: Time from the start of the first shard to the end of the job's work.
        looks: Looks at the driver and at each worker, by process.
    """

    loops: int
    seconds: float = 0.0
    working_seconds: float = 0.0
    looks: dict[str, list[Look]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Loops per minute from the start of the first shard."""
        return 60 * self.loops / self.working_seconds

    @property
    def rate_with_start(self) -> float:
        """Loops per minute of the whole command."""
        return 60 * self.loops / self.seconds


def save_tiny_model(folder: Path) -> Path:
    """Save the preset `tiny` for 64x64 images with random weights, and return the folder."""
    record = ModelRecord(recipe={}, data_digest="none", metrics={})
    save_model(folder, build_network("tiny", MEL), PRESETS["tiny"].objective.scheduler("ddim"), MEL, record)
    return folder


def run_job(
    model: Path, output: Path, loops: int, workers: int, *options: object, watch_memory: bool = False
) -> JobRun:
    """Generate the seeds 0 to `loops` - 1 by the command, and return its times and its memory.

    Args:
        model: Folder of the model.
        output: Output folder, which does not exist yet.
        loops: Number of loops, enough for several shards.
        workers: Number of workers.
        *options: Further options of the command.
        watch_memory: Whether to look at the memory of the processes.

    Raises:
        RuntimeError: The job failed.
    """
    given = ("--model", model, "--output_dir", output, "--count", loops, "--num_workers", workers, *options)
    command = [sys.executable, "jobs/generate.py", *map(str, given)]
    run, began = JobRun(loops), time.time()
    with (
        output.with_suffix(".log").open("w+") as log,
        subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        at_work = _wait_for_work(process)
        while watch_memory and process.poll() is None:
            names = {process.pid: "driver", **{pid: f"worker {pid}" for pid, _ in _workers(process.pid)}}
            _look(run, output, names)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        process.wait()
        run.seconds = time.time() - began
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}: {log.read()[-4_000:]}")
    assert at_work is not None, "no worker was seen at work: use more loops"
    run.working_seconds = (output / SUCCESS).stat().st_mtime - at_work
    return run


def _wait_for_work(process: subprocess.Popen[bytes]) -> float | None:
    """Wait until a worker runs a shard, and return the time of the last look before.

    Returns:
        The time, or None if the job ended without being seen at work.
    """
    before = time.time()
    while process.poll() is None:
        now = time.time()
        if any(title.endswith(AT_WORK) for _, title in _workers(process.pid)):
            return before
        before = now
        time.sleep(SECONDS_BETWEEN_TITLES)
    return None


def _workers(driver: int) -> list[tuple[int, str]]:
    """Return the process ids and the titles of the workers of a job."""
    try:
        family = psutil.Process(driver).children(recursive=True)
    except psutil.Error:
        return []
    found = []
    for process in family:
        try:
            title = " ".join(process.cmdline()).strip()
        except psutil.Error:  # the process has ended meanwhile
            continue
        if title.startswith("ray::") and WORKER in title:
            found.append((process.pid, title))
    return found


def _look(run: JobRun, output: Path, names: dict[int, str]) -> None:
    audio = output / "audio"
    loops = sum(1 for _ in audio.iterdir()) if audio.exists() else 0
    for pid, name in names.items():
        try:
            memory = psutil.Process(pid).memory_full_info()
        except psutil.Error:
            continue
        run.looks.setdefault(name, []).append(Look(loops, memory.rss, memory.uss))
