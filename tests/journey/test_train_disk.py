"""Training on a disk that fills up: the job waits for space and loses no checkpoint.

If no space becomes free, the job ends with an error that says what to do.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import newest_checkpoint

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 120 MB, just large enough for a small training."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _wait_for(happens: str, log: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while happens not in log.read_text():
        assert process.poll() is None, log.read_text()[-4_000:]
        assert time.monotonic() < deadline, log.read_text()[-4_000:]
        time.sleep(0.02)


@pytest.mark.soak
@pytest.mark.parametrize("room_is_made", [True, False])
@pytest.mark.root
def test_a_full_disk_loses_nothing(dataset: Path, small_disk: Path, tmp_path: Path, room_is_made: bool) -> None:
    run, log, filler = small_disk / "run", tmp_path / "log", small_disk / "filler"
    settings = {
        "dataset_name": dataset,
        "output_dir": run,
        "max_train_steps": 300,
        "num_workers": 1,
        "train_batch_size": 4,
        "checkpoint_minutes": 1e-6,
    }
    flags = [
        str(part)
        for name, value in (settings | {"preview_count": 0, "report_to": "none"}).items()
        for part in (f"--{name}", value)
    ]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "jobs/train.py", *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    deadline = time.monotonic() + DEADLINE_S
    while newest_checkpoint(Folder(str(run))) is None:
        assert process.poll() is None, log.read_text()[-4_000:]
        assert time.monotonic() < deadline, log.read_text()[-4_000:]
        time.sleep(0.02)
    with filler.open("wb") as file:
        while (free := shutil.disk_usage(small_disk).free) > 0:
            file.write(bytes(min(free, 1 << 20)))
            file.flush()
    _wait_for("cannot be written", log, process)
    if room_is_made:
        filler.unlink()
    process.communicate(timeout=DEADLINE_S)
    assert newest_checkpoint(Folder(str(run))) is not None
    if room_is_made:
        assert process.returncode == 0, log.read_text()[-4_000:]
        assert (run / "model" / "model_index.json").exists()
    else:
        assert process.returncode == 1
        last = log.read_text().strip().splitlines()[-1]
        assert last.startswith("error: training failed: checkpoint ")
        assert last.endswith("run the same command again to resume from the previous checkpoint")
