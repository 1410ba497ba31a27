"""The process that decodes: files that end it cost themselves alone, and it ends with its worker."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from audiodiff_core.audio import AudioDecodeError
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.png import encode_png
from audiodiff_core.slices import Slicing, mel_slices
from audiodiff_platform.slicer import Slicer

MEL = MelConfig(x_res=32, y_res=32, hop_length=1024)


@pytest.fixture
def slicer() -> Iterator[Slicer]:
    made = Slicer(MEL, Slicing(overlap=0.5))
    yield made
    made.close()


def _child(parent: int) -> psutil.Process:
    (child,) = (process for process in psutil.Process(parent).children() if "audiodiff_platform.slicer" in process.cmdline())
    return child


def test_slices_are_those_of_the_core(slicer: Slicer, loops: Path, tmp_path: Path) -> None:
    for name in ("loop_mika", "loop_tabla"):
        expected = list(mel_slices(loops / f"{name}.flac", Mel(MEL), Slicing(overlap=0.5)))
        sliced = list(slicer.slices(name, loops / f"{name}.flac", tmp_path / "spool"))
        assert [png for _, png in sliced] == [encode_png(piece.image) for piece in expected]
        assert [(facts["index"], facts["start_s"], facts["reference_db"]) for facts, _ in sliced] == [(p.index, p.start_s, p.reference_db) for p in expected]


def test_unusable_files_say_why_and_the_process_goes_on(slicer: Slicer, loops: Path, tmp_path: Path) -> None:
    process = _child(os.getpid()).pid
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(AudioDecodeError, match="not audio"):
        slicer.slices("text.wav", tmp_path / "text.wav", tmp_path / "spool")
    assert len(slicer.slices("good", loops / "loop_mika.flac", tmp_path / "spool").slices) > 0
    assert _child(os.getpid()).pid == process


def test_a_file_without_sound_says_why(slicer: Slicer, loops: Path, tmp_path: Path) -> None:
    left, rate = soundfile.read(loops / "loop_mika.flac", dtype="float32", always_2d=True)
    soundfile.write(tmp_path / "cancelled.wav", np.stack([left[:, 0], -left[:, 0]], axis=1), rate)
    soundfile.write(tmp_path / "silent.wav", np.zeros((2 * rate, 2)), rate)
    with pytest.raises(AudioDecodeError, match=r"^cancelled\.wav: silent throughout: its channels cancel each other in the mono mix"):
        slicer.slices("cancelled.wav", tmp_path / "cancelled.wav", tmp_path / "spool")
    with pytest.raises(AudioDecodeError, match=r"^silent\.wav: silent throughout$"):
        slicer.slices("silent.wav", tmp_path / "silent.wav", tmp_path / "spool")


def _end_what_opens(spool: Path) -> None:
    """A FIFO as spool holds the process until somebody reads: here it is killed instead, as by a decoder's fault."""
    with spool.open("rb"):  # returns when the other side has opened it
        child = _child(os.getpid())
        child.kill()
        with contextlib.suppress(ChildProcessError):  # or the slicer was first to hear of it
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A file whose slices are more than a pipe holds."""
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, 22_050 * 120), 22_050)
    return tmp_path / "noise.wav"


def test_a_file_that_ends_two_processes_is_unusable(slicer: Slicer, noise: Path, loops: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")

    def end_twice() -> None:
        _end_what_opens(tmp_path / "held")
        _end_what_opens(tmp_path / "held")

    killer = threading.Thread(target=end_twice)
    killer.start()
    with pytest.raises(AudioDecodeError, match=r"noise\.wav: ended 2 processes that decoded it \(SIGKILL\)"):
        slicer.slices("noise.wav", noise, tmp_path / "held")
    killer.join()
    assert len(slicer.slices("good", loops / "loop_mika.flac", tmp_path / "spool").slices) > 0


def test_a_file_whose_process_ends_once_is_used(slicer: Slicer, noise: Path, tmp_path: Path) -> None:
    fifo, spool = tmp_path / "fifo", tmp_path / "spool"
    os.mkfifo(fifo)
    spool.symlink_to(fifo)

    def end_once() -> None:
        with fifo.open("rb"):
            spool.unlink()
            _child(os.getpid()).kill()

    killer = threading.Thread(target=end_once)
    killer.start()
    assert len(slicer.slices("noise.wav", noise, spool).slices) > 100
    killer.join()


def test_the_process_ends_with_its_worker(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from audiodiff_core.mel import MelConfig\n"
        "from audiodiff_core.slices import Slicing\n"
        "from audiodiff_platform.slicer import Slicer\n"
        "slicer = Slicer(MelConfig(), Slicing())\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        child = _child(worker.pid)
        worker.kill()
        child.wait(timeout=30)
