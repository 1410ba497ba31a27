"""Loop points and tempo in WAV files, read byte by byte, and by readers that do not know them."""

import io
import struct
import warnings
from typing import Any

import av
import numpy as np
import pytest
import scipy.io.wavfile
import soundfile

from audiodiff_core.audio import decode_audio, encode_audio
from audiodiff_core.audio.wav_chunks import LoopInfo

RATE = 44_100
AUDIO = (0.5 * np.sin(np.arange(2 * RATE) / 20)).astype(np.float32)


def chunks(content: bytes) -> dict[bytes, bytes]:
    """Return the chunks of a RIFF file.

    The chunks must fill the file exactly. Each chunk must begin at an even offset.
    """
    riff, size, kind = struct.unpack_from("<4sI4s", content)
    assert (riff, size, kind) == (b"RIFF", len(content) - 8, b"WAVE")
    contents = {}
    place = 12
    while place < len(content):
        name, length = struct.unpack_from("<4sI", content, place)
        contents[name] = content[place + 8 : place + 8 + length]
        assert len(contents[name]) == length
        place += 8 + length + length % 2
    assert place == len(content)
    return contents


@pytest.mark.parametrize("length", [2 * RATE, 2 * RATE - 1])
def test_the_chunks_hold_loop_points_and_tempo(length: int) -> None:
    contents = chunks(encode_audio(AUDIO[:length], RATE, loop=LoopInfo(beats=4, beats_per_bar=4)))
    assert list(contents) == [b"fmt ", b"data", b"smpl", b"acid"]
    assert len(contents[b"data"]) == 2 * length
    sampler = struct.unpack("<9I6I", contents[b"smpl"])
    assert sampler == (0, 0, 22_676, 60, 0, 0, 0, 1, 0, 0, 0, 0, length - 1, 0, 0)
    flags, note, _, _, beats, denominator, numerator, bpm = struct.unpack("<IHHfIHHf", contents[b"acid"])
    assert (flags, note, beats, denominator, numerator) == (4, 60, 4, 4, 4)
    assert bpm == pytest.approx(4 * 60 * RATE / length)


def test_a_root_note_and_another_metre() -> None:
    contents = chunks(encode_audio(AUDIO, RATE, loop=LoopInfo(beats=6, beats_per_bar=3, root_note=45)))
    assert struct.unpack_from("<9I", contents[b"smpl"])[3] == 45
    flags, note, _, _, beats, denominator, numerator, bpm = struct.unpack("<IHHfIHHf", contents[b"acid"])
    assert (flags, note, beats, denominator, numerator, bpm) == (6, 45, 6, 4, 3, 180)


def test_other_readers_read_the_same_samples() -> None:
    plain, looped = encode_audio(AUDIO, RATE), encode_audio(AUDIO, RATE, loop=LoopInfo(beats=4))
    expected, rate = soundfile.read(io.BytesIO(plain), dtype="int16")
    samples, found_rate = soundfile.read(io.BytesIO(looped), dtype="int16")
    assert (found_rate, rate) == (RATE, RATE)
    assert np.array_equal(samples, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.io.wavfile.WavFileWarning)  # scipy warns of unknown chunks
        found_rate, samples = scipy.io.wavfile.read(io.BytesIO(looped))
    assert found_rate == RATE
    assert np.array_equal(samples, expected)
    container: Any = av.open(io.BytesIO(looped))
    with container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert np.array_equal(samples, expected)
    assert np.array_equal(decode_audio(looped, RATE), decode_audio(plain, RATE))


def test_libsndfile_knows_the_chunks() -> None:
    with soundfile.SoundFile(io.BytesIO(encode_audio(AUDIO, RATE, loop=LoopInfo(beats=4, root_note=45)))) as sound:
        log = sound.extra_info
    for line in ("Loop Count", "Tempo", "Beats"):
        assert line in log, log


def test_the_same_samples_give_the_same_bytes() -> None:
    plain, looped = encode_audio(AUDIO, RATE), encode_audio(AUDIO, RATE, loop=LoopInfo(beats=4))
    assert looped == encode_audio(AUDIO.copy(), RATE, loop=LoopInfo(beats=4))
    assert looped[8 : len(plain)] == plain[8:], "what follows the stated size is the plain file, then the chunks"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beats": 0}, "beats 0"),
        ({"beats": 4, "beats_per_bar": 65}, "beats_per_bar 65"),
        ({"beats": 4, "root_note": 128}, "root_note 128"),
    ],
)
def test_a_wrong_metre_is_named(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopInfo(**given)


def test_what_cannot_be_a_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="audio of 0 samples"):
        encode_audio(AUDIO[:0], RATE, loop=LoopInfo(beats=4))
    with pytest.raises(ValueError, match="format mp3 with loop points: use wav, flac or ogg"):
        encode_audio(AUDIO, RATE, "mp3", loop=LoopInfo(beats=4))


def test_a_loop_without_a_tempo_has_loop_points_alone() -> None:
    assert list(chunks(encode_audio(AUDIO, RATE, loop=LoopInfo(beats=None)))) == [b"fmt ", b"data", b"smpl"]
    with pytest.raises(ValueError, match="beats None: the loop has no tempo"):
        LoopInfo(beats=None).bpm(RATE, RATE)
