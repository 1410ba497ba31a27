"""Watches of decoding: they receive each header's length and all samples, and can end the decoding."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiodiff_core.audio import AudioDecodeError, Samples, UnusableError, decode_audio, stream
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.mel.slices import Slicing, mel_slices
from tests.malformed import aac

RATE = 44_100


class Seen:
    def __init__(self, most: float = np.inf) -> None:
        self.stated: list[float | None] = []
        self.decoded_samples, self.most = 0, most

    def opened(self, stated_s: float | None) -> None:
        self.stated.append(stated_s)

    def decoded(self, block: Samples) -> None:
        self.decoded_samples += block.size
        if self.decoded_samples > self.most:
            raise UnusableError("enough")


@pytest.fixture(scope="module")
def sound() -> Samples:
    samples: Samples = np.random.default_rng(0).normal(0, 0.1, (3 * RATE, 2)).astype(np.float32)
    return samples


def _content(sound: Samples, kind: str) -> bytes:
    if kind in {"adts", "mp4"}:
        return aac(sound, kind)
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, RATE, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "stated_s"),
    [("WAV", 3), ("FLAC", 3), ("AIFF", 3), ("mp4", 3), ("MP3", None), ("OGG", None), ("adts", None)],
)
def test_headers_state_a_length_or_none(sound: Samples, kind: str, stated_s: float | None) -> None:
    seen, content = Seen(), _content(sound, kind)
    samples = np.concatenate(list(stream(content, 22_050, watch=seen)))
    np.testing.assert_array_equal(samples, decode_audio(content, 22_050))
    assert seen.stated == [stated_s if stated_s is None else pytest.approx(stated_s, abs=0.1)]
    assert seen.decoded_samples == pytest.approx(2 * len(sound), rel=0.05)


def test_slices_of_a_tracks_level_are_watched_twice(sound: Samples, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "sound.wav", sound, RATE)
    seen = Seen()
    assert (
        len(
            list(
                mel_slices(tmp_path / "sound.wav", Mel(MelConfig(x_res=32, y_res=32)), Slicing(reference="track"), seen)
            )
        )
        > 0
    )
    assert (seen.stated, seen.decoded_samples) == ([3, 3], 4 * len(sound))


def test_a_watch_ends_the_decoding(sound: Samples) -> None:
    with pytest.raises(AudioDecodeError, match="<bytes>: enough"):
        list(stream(_content(sound, "WAV"), RATE, watch=Seen(sound.size - 1)))
