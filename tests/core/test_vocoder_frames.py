"""Frames equal to torch's short-time spectra, their inversion to signals, and circular frames."""

import pytest
import torch

from audiodiff_core.mel import MelConfig
from audiodiff_core.vocoder import frames as module
from audiodiff_core.vocoder.frames import Frames

CPU = torch.device("cpu")
SETTINGS = [(512, 128), (512, 256), (500, 150), (501, 100), (512, 400)]


def noise(frames: Frames) -> torch.Tensor:
    return torch.randn((2, frames.length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n_fft", "hop"), SETTINGS)
def test_spectra_are_torchs(n_fft: int, hop: int) -> None:
    frames = Frames(n_fft, hop, 20, CPU)
    audio = noise(frames)
    padded = torch.nn.functional.pad(audio, (0, hop))
    expected = torch.stft(
        padded, n_fft, hop, window=torch.hann_window(n_fft), pad_mode="constant", return_complex=True
    ).mT[:, :20]
    torch.testing.assert_close(frames.analyze(frames.signal(audio), slice(0, 20)), expected)
    torch.testing.assert_close(frames.analyze(frames.signal(audio), slice(7, 9)), expected[:, 7:9])


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize(("n_fft", "hop"), SETTINGS)
def test_spectra_of_a_loop_are_those_of_its_repetition(n_fft: int, hop: int, count: int) -> None:
    frames = Frames(n_fft, hop, count, CPU, circular=True)
    audio = noise(frames)
    assert frames.length == count * hop
    before = -(-n_fft // frames.length)
    long = torch.stft(
        audio.repeat(1, 2 * before + 2), n_fft, hop, window=torch.hann_window(n_fft), center=True, return_complex=True
    ).mT
    expected = long[:, before * count : (before + 1) * count]
    torch.testing.assert_close(frames.analyze(frames.signal(audio), slice(0, count)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize(("n_fft", "hop"), SETTINGS)
def test_a_signal_comes_back_from_its_spectra(
    n_fft: int, hop: int, count: int, circular: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = Frames(n_fft, hop, count, CPU, circular)
    audio = noise(frames)
    signal = frames.signal(audio)
    assert signal.shape == (2, frames.span)
    again = frames.synthesize(2, lambda portion: frames.analyze(signal, portion))
    torch.testing.assert_close(frames.audio(again), audio, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, signal, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(module, "CHUNK_SAMPLES_CPU", 4 * n_fft)
    piecemeal = Frames(n_fft, hop, count, CPU, circular)
    torch.testing.assert_close(
        piecemeal.synthesize(2, lambda portion: piecemeal.analyze(signal, portion)), again, rtol=1e-5, atol=1e-6
    )


def test_frames_that_do_not_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="hop_length 512 is not below n_fft 512"):
        Frames(512, 512, 20, CPU)


def test_frames_of_one_geometry_are_shared_and_stay_as_they_are() -> None:
    config = MelConfig(n_fft=512, hop_length=128)
    frames = Frames.of(config, 20, CPU)
    assert Frames.of(config.model_copy(update={"x_res": 64, "y_res": 32, "top_db": 60}), 20, CPU) is frames
    others = [
        Frames.of(config, 20, CPU, circular=True),
        Frames.of(config, 21, CPU),
        Frames.of(config.model_copy(update={"hop_length": 256}), 20, CPU),
        Frames.of(config.model_copy(update={"n_fft": 1_024}), 20, CPU),
    ]
    assert len({frames, *others}) == 5
    fresh = Frames(512, 128, 20, CPU)
    for _ in range(2):
        shared = frames.synthesize(2, lambda portion: frames.analyze(frames.signal(noise(frames)), portion))
        new = fresh.synthesize(2, lambda portion: fresh.analyze(fresh.signal(noise(fresh)), portion))
        assert torch.equal(shared, new)
