"""A folder of loops that grows: the files of the first loops stay, and the new files are those of one larger run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW, MANY = 100, 250


def _generate(model: Path, out: Path, count: int) -> None:
    given = {"model": model, "output_dir": out, "count": count, "steps": 2, "num_workers": 2}
    flags = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    subprocess.run([sys.executable, "jobs/generate.py", *flags], cwd=ROOT, check=True)


def _states(out: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return the modification time, the inode and the bytes of each audio file."""
    files = sorted((out / "audio").iterdir())
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_ino, file.read_bytes()) for file in files}


def _loops(count: int) -> list[str]:
    return [f"{seed:010d}.wav" for seed in range(count)]


@pytest.mark.soak
def test_a_folder_grows_and_its_first_files_are_untouched(model: Path, tmp_path: Path) -> None:
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    _generate(model, grown, FEW)
    first = _states(grown)
    assert list(first) == _loops(FEW)
    _generate(model, grown, MANY)
    after = _states(grown)
    assert list(after) == _loops(MANY)
    assert {name: after[name] for name in first} == first
    _generate(model, whole, MANY)
    assert {name: content for name, (*_, content) in after.items()} == {
        name: content for name, (*_, content) in _states(whole).items()
    }
    _generate(model, grown, MANY)
    assert _states(grown) == after, "a finished job is done once"
    assert (grown / "_SUCCESS").exists()
