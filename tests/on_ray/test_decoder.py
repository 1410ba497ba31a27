"""The decoder process: a file that kills it, hangs it or expands in it affects no other file.

The process ends with its worker.
"""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from audiodiff_core.audio import AudioDecodeError, decode_audio
from audiodiff_core.evaluation.embedders import items_of
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.mel.png import encode_png
from audiodiff_core.mel.slices import Slicing, mel_slices
from audiodiff_platform.decoder import Decoder, Limits, SlicedFile
from audiodiff_platform.decoder import child as child_module
from audiodiff_platform.decoder import decoder as decoder_module
from tests.poison import expanding_flac, repeating_m4a

MEL = MelConfig(x_res=32, y_res=32, hop_length=1024)
SLICING = Slicing(overlap=0.5)
SECRETS = ("AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN", "RAY_AUTH_TOKEN", "AUDIODIFF_API_KEY")


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder(Limits.of(MEL))
    yield made
    made.close()


@pytest.fixture
def hasty() -> Iterator[Decoder]:
    """A decoder whose time limit is one second plus twice the duration of the file."""
    made = Decoder(Limits(base_s=1.0))
    yield made
    made.close()


def _sliced(decoder: Decoder, file: Path, spool: Path) -> SlicedFile:
    return decoder.slices(file.name, file, spool, MEL, SLICING)


def _child(parent: int) -> psutil.Process:
    """The newest process that decodes for a worker. Its command line appears a moment after its start."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        processes = [
            process
            for process in psutil.Process(parent).children()
            if process.status() != psutil.STATUS_ZOMBIE and "audiodiff_platform.decoder.process" in process.cmdline()
        ]
        if processes:
            return max(processes, key=lambda process: (process.create_time(), process.pid))
        time.sleep(0.01)
    pytest.fail(f"process {parent} has no decoder process")


def test_slices_are_those_of_the_core(decoder: Decoder, loops: Path, tmp_path: Path) -> None:
    for name in ("loop_mika", "loop_tabla"):
        expected = list(mel_slices(loops / f"{name}.flac", Mel(MEL), SLICING))
        sliced = list(_sliced(decoder, loops / f"{name}.flac", tmp_path / "spool"))
        assert [png for _, png in sliced] == [encode_png(piece.image) for piece in expected]
        assert [(facts["index"], facts["start_s"], facts["reference_db"]) for facts, _ in sliced] == [
            (p.index, p.start_s, p.reference_db) for p in expected
        ]


def test_items_and_samples_are_those_of_the_core(decoder: Decoder, loops: Path, tmp_path: Path) -> None:
    for file in (loops / "loop_mika.flac", loops / "bass_hit_c.flac"):
        expected = list(items_of(file, Mel(MEL)))
        items = list(decoder.items(file.name, file, tmp_path / "spool", MEL, with_samples=True))
        assert len(items) == len(expected)
        for (image, samples), item in zip(items, expected, strict=True):
            np.testing.assert_array_equal(image, item.image)
            np.testing.assert_array_equal(samples, item.samples)
        images = list(decoder.items(file.name, file, tmp_path / "spool", MEL, with_samples=False))
        assert [(image.tobytes(), samples) for image, samples in images] == [
            (item.image.tobytes(), None) for item in expected
        ]
        whole = decoder.samples(file.name, file, tmp_path / "samples", 48_000, 60)
        np.testing.assert_array_equal(whole, decode_audio(file, 48_000))
    with pytest.raises(
        AudioDecodeError, match=r"^loop_mika\.flac: lasts \d s or more, at most 1 s are decoded at once"
    ):
        decoder.samples("loop_mika.flac", loops / "loop_mika.flac", tmp_path / "samples", 22_050, 1)


def test_unusable_files_say_why_and_the_process_goes_on(decoder: Decoder, loops: Path, tmp_path: Path) -> None:
    process = _child(os.getpid()).pid
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(AudioDecodeError, match="not audio"):
        _sliced(decoder, tmp_path / "text.wav", tmp_path / "spool")
    assert len(_sliced(decoder, loops / "loop_mika.flac", tmp_path / "spool").slices) > 0
    assert _child(os.getpid()).pid == process


def test_a_file_without_sound_says_why(decoder: Decoder, loops: Path, tmp_path: Path) -> None:
    left, rate = soundfile.read(loops / "loop_mika.flac", dtype="float32", always_2d=True)
    soundfile.write(tmp_path / "cancelled.wav", np.stack([left[:, 0], -left[:, 0]], axis=1), rate)
    soundfile.write(tmp_path / "silent.wav", np.zeros((2 * rate, 2)), rate)
    with pytest.raises(
        AudioDecodeError, match=r"^cancelled\.wav: silent throughout: its channels cancel each other in the mono mix"
    ):
        _sliced(decoder, tmp_path / "cancelled.wav", tmp_path / "spool")
    with pytest.raises(
        AudioDecodeError, match=r"^cancelled\.wav: silent throughout: its channels cancel each other in the mono mix"
    ):
        decoder.samples("cancelled.wav", tmp_path / "cancelled.wav", tmp_path / "spool", rate, 60)
    with pytest.raises(AudioDecodeError, match=r"^silent\.wav: silent throughout$"):
        _sliced(decoder, tmp_path / "silent.wav", tmp_path / "spool")
    with pytest.raises(AudioDecodeError, match=r"^silent\.wav: silent throughout$"):
        decoder.samples("silent.wav", tmp_path / "silent.wav", tmp_path / "spool", rate, 60)
    assert list(decoder.items("silent.wav", tmp_path / "silent.wav", tmp_path / "spool", MEL, with_samples=False)) == []


def _end_what_opens(spool: Path, end: signal.Signals = signal.SIGKILL) -> None:
    """Kill the decoder that opens the FIFO `spool`, as a fault of the decoder would.

    The FIFO blocks the decoder until a reader opens it.
    """
    with spool.open("rb"):  # returns when the decoder has opened the FIFO
        child = _child(os.getpid())
        child.send_signal(end)
        with contextlib.suppress(ChildProcessError):  # `Decoder` may have reaped the process first
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A file whose slices do not fit into the buffer of a pipe."""
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, 22_050 * 120), 22_050)
    return tmp_path / "noise.wav"


def test_a_file_that_ends_two_processes_is_unusable(decoder: Decoder, noise: Path, loops: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")

    def end_twice() -> None:
        _end_what_opens(tmp_path / "held")
        _end_what_opens(tmp_path / "held")

    killer = threading.Thread(target=end_twice)
    killer.start()
    with pytest.raises(AudioDecodeError, match=r"noise\.wav: ended 2 decoder processes \(SIGKILL\)"):
        _sliced(decoder, noise, tmp_path / "held")
    killer.join()
    assert len(_sliced(decoder, loops / "loop_mika.flac", tmp_path / "spool").slices) > 0


def test_a_file_whose_process_ends_once_is_used(decoder: Decoder, noise: Path, tmp_path: Path) -> None:
    fifo, spool = tmp_path / "fifo", tmp_path / "spool"
    os.mkfifo(fifo)
    spool.symlink_to(fifo)

    def end_once() -> None:
        with fifo.open("rb"):
            spool.unlink()
            _child(os.getpid()).kill()

    killer = threading.Thread(target=end_once)
    killer.start()
    assert len(_sliced(decoder, noise, spool).slices) > 100
    killer.join()


def test_a_file_that_hangs_is_unusable_at_once(hasty: Decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(child_module, "MIN_CPU_SHARE", -1.0)  # a stopped process then counts as working
    file = tmp_path / "second.flac"
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, 44_100), 44_100)
    assert len(_sliced(hasty, file, tmp_path / "spool").slices) > 0
    child = _child(os.getpid())
    child.suspend()
    with pytest.raises(
        AudioDecodeError, match=r"^second\.flac: took longer than 2 s to decode, the limit for a file of its size$"
    ):
        _sliced(hasty, file, tmp_path / "spool")
    assert not child.is_running()
    assert len(_sliced(hasty, file, tmp_path / "spool").slices) > 0


@pytest.mark.soak_short
def test_a_process_that_waits_for_storage_is_replaced_once(hasty: Decoder, tmp_path: Path) -> None:
    file = tmp_path / "second.flac"
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, 44_100), 44_100)
    assert len(_sliced(hasty, file, tmp_path / "spool").slices) > 0
    child = _child(os.getpid())
    child.suspend()
    assert len(_sliced(hasty, file, tmp_path / "spool").slices) > 0
    assert not child.is_running()


def test_a_process_is_replaced_after_many_files(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, loops: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(decoder_module, "MAX_FILES_PER_PROCESS", 2)
    processes = []
    for _ in range(5):
        assert len(_sliced(decoder, loops / "bass_hit_c.flac", tmp_path / "spool").slices) > 0
        processes.append(_child(os.getpid()).pid)
    assert processes[0] == processes[1] != processes[2] == processes[3] != processes[4]


def test_a_file_that_needs_too_much_memory_is_unusable_and_its_process_replaced(tmp_path: Path) -> None:
    small = Decoder(Limits(memory_bytes=200 << 20))
    child = _child(os.getpid())
    large = tmp_path / "large.wav"
    soundfile.write(large, np.random.default_rng(0).normal(0, 0.1, 22_050), 22_050)
    mel = MelConfig(x_res=8_192, y_res=512, hop_length=1_024, n_fft=8_192)
    with pytest.raises(AudioDecodeError, match="needs more memory than the limit for a file of its size"):
        small.slices("large.wav", large, tmp_path / "spool", mel, Slicing())
    assert not child.is_running()
    small.close()


def test_a_spool_that_cannot_be_opened_blames_no_file(decoder: Decoder, loops: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="spool"):
        _sliced(decoder, loops / "loop_mika.flac", tmp_path / "absent" / "spool")


def test_modules_of_the_working_directory_are_not_loaded(
    monkeypatch: pytest.MonkeyPatch, loops: Path, tmp_path: Path
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('the module of the working directory')")
    monkeypatch.chdir(tmp_path)
    made = Decoder()
    assert len(_sliced(made, loops / "loop_mika.flac", tmp_path / "spool").slices) > 0
    made.close()


def test_a_file_that_uses_up_the_processors_time_is_unusable_at_once(
    decoder: Decoder, noise: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "held")
    # The kernel sends SIGXCPU at the limit of processor time.
    killer = threading.Thread(target=_end_what_opens, args=(tmp_path / "held", signal.SIGXCPU))
    killer.start()
    with pytest.raises(
        AudioDecodeError, match=r"^noise\.wav: took more than \d+ s of processor time to decode, the limit for"
    ):
        _sliced(decoder, noise, tmp_path / "held")
    killer.join()


@pytest.mark.soak_short
def test_the_limit_of_time_follows_from_the_stated_length(hasty: Decoder, tmp_path: Path) -> None:
    file = tmp_path / "second.flac"
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, 44_100), 44_100)
    os.mkfifo(tmp_path / "held")
    reader = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)  # the pipe fills up unread
    with pytest.raises(
        AudioDecodeError,
        match=r"^second\.flac: took longer than 3 s to decode, the limit for its stated duration of 1 s$",
    ):
        hasty.samples(file.name, file, tmp_path / "held", 44_100, 60)
    os.close(reader)


@pytest.mark.soak_short
def test_a_file_that_expands_a_thousand_times_is_unusable(decoder: Decoder, loops: Path, tmp_path: Path) -> None:
    poison = expanding_flac(tmp_path / "poison.flac")
    reason = r"^poison\.flac: expands to more than \d+\.\d MB of audio, the limit for a file of 0\.\d\d\d MB$"
    child = _child(os.getpid()).pid
    with pytest.raises(AudioDecodeError, match=reason):
        _sliced(decoder, poison, tmp_path / "spool")
    with pytest.raises(AudioDecodeError, match=reason):
        decoder.samples("poison.flac", poison, tmp_path / "spool", 22_050, 3_600)
    with pytest.raises(AudioDecodeError, match=reason):
        decoder.items("poison.flac", poison, tmp_path / "spool", MEL, with_samples=False)
    assert len(_sliced(decoder, loops / "loop_mika.flac", tmp_path / "spool").slices) > 0
    assert _child(os.getpid()).pid == child


@pytest.mark.soak_short
@pytest.mark.parametrize(
    ("seconds", "edits", "limits", "reason"),
    [
        pytest.param(2.0, 1_000, Limits(), "expands to more than", id="expands"),
        pytest.param(
            2.0,
            20_000,
            Limits(base_s=0.1, audio_bytes=1 << 40),  # the limit of time alone, however fast the machine is
            r"took longer than \d+ s to decode, the limit",
            id="loops",
        ),
    ],
)
def test_an_edit_list_that_repeats_a_file_is_unusable(
    seconds: float, edits: int, limits: Limits, reason: str, tmp_path: Path
) -> None:
    limited = Decoder(limits)
    with contextlib.closing(limited), pytest.raises(AudioDecodeError, match=reason):
        _sliced(limited, repeating_m4a(tmp_path / "repeats.m4a", seconds, edits), tmp_path / "spool")


def test_the_process_ends_with_its_decoder(loops: Path, tmp_path: Path) -> None:
    decoder = Decoder()
    process = _child(os.getpid())
    assert list(_sliced(decoder, loops / "loop_mika.flac", tmp_path / "spool"))
    del decoder
    gc.collect()
    assert not process.is_running()


def test_the_process_knows_no_secret(monkeypatch: pytest.MonkeyPatch, loops: Path, tmp_path: Path) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LC_TIME", "C")
    made = Decoder()
    assert len(_sliced(made, loops / "loop_mika.flac", tmp_path / "spool").slices) > 0
    child = _child(os.getpid())
    environment = child.environ()
    status = Path(f"/proc/{child.pid}/status").read_text()
    made.close()
    assert "secret" not in str(environment)
    assert (environment["PATH"], environment["LC_TIME"]) == (os.environ["PATH"], "C")
    assert "NoNewPrivs:\t1\n" in status


def test_a_full_disk_blames_no_file(decoder: Decoder, loops: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        _sliced(decoder, loops / "loop_mika.flac", Path("/dev/full"))


def test_processes_that_cannot_start_blame_no_file(
    monkeypatch: pytest.MonkeyPatch, loops: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    made = Decoder()
    with pytest.raises(ChildProcessError, match=r"2 decoder processes ended before they were ready \(exit status 1\)"):
        _sliced(made, loops / "loop_mika.flac", tmp_path / "spool")
    monkeypatch.undo()
    assert len(_sliced(made, loops / "loop_mika.flac", tmp_path / "spool").slices) > 0
    made.close()


def test_the_process_loads_no_more_than_it_needs() -> None:
    code = "import sys, audiodiff_platform.decoder.process; print({'ray', 'torch', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_process_ends_with_its_worker(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from audiodiff_platform.decoder import Decoder\n"
        "decoder = Decoder()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        child = _child(worker.pid)
        worker.kill()
        child.wait(timeout=30)
