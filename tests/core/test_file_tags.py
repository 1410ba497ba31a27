"""Tags in audio files, as other readers find them, and the audio that they leave alone."""

import io
from typing import Any, get_args

import av
import numpy as np
import pytest
import soundfile

from audiodiff_core.audio import AudioFormat, LoopInfo, Tags, decode_audio, encode_audio

RATE = 22_050
AUDIO = (0.5 * np.sin(np.arange(RATE) / 20)).astype(np.float32)
TAGS = Tags(bpm=92.314, key="F#m", comment='{"model":"0123"}', software="audiodiff")


def metadata(content: bytes) -> dict[str, str]:
    """Return the tags of a file and of its stream, as FFmpeg reads them."""
    container: Any = av.open(io.BytesIO(content))
    with container:
        return {**container.metadata, **container.streams[0].metadata}


@pytest.mark.parametrize(
    ("file_format", "stated"),
    [
        ("wav", {"comment": TAGS.comment, "encoder": "audiodiff"}),
        ("mp3", {"comment": TAGS.comment, "TBPM": "92", "TKEY": "F#m"}),
        *(
            (name, {"COMMENT": TAGS.comment, "ENCODER": "audiodiff", "BPM": "92.31", "INITIALKEY": "F#m"})
            for name in ("flac", "ogg")
        ),
    ],
)
def test_other_readers_find_the_tags(file_format: AudioFormat, stated: dict[str, str]) -> None:
    content = encode_audio(AUDIO, RATE, file_format, tags=TAGS)
    assert metadata(content).items() >= stated.items()
    assert soundfile.SoundFile(io.BytesIO(content)).comment == TAGS.comment


@pytest.mark.parametrize("file_format", get_args(AudioFormat))
def test_tags_leave_the_audio_alone(file_format: AudioFormat) -> None:
    plain, tagged = encode_audio(AUDIO, RATE, file_format), encode_audio(AUDIO, RATE, file_format, tags=TAGS)
    assert len(tagged) > len(plain)
    decoded, _ = soundfile.read(io.BytesIO(tagged), dtype="float32")
    assert len(decoded) == len(AUDIO), "delay and padding of the encoder are still stated"
    assert np.array_equal(decoded, soundfile.read(io.BytesIO(plain), dtype="float32")[0])
    assert np.array_equal(decode_audio(tagged, RATE), decode_audio(plain, RATE))


@pytest.mark.parametrize("file_format", get_args(AudioFormat))
def test_the_same_tags_give_the_same_bytes(file_format: AudioFormat) -> None:
    first, again = (encode_audio(AUDIO, RATE, file_format, tags=TAGS) for _ in range(2))
    assert first == again, "an Ogg file has no random serial number"


@pytest.mark.parametrize("file_format", ["flac", "ogg"])
def test_loop_points_are_comments(file_format: AudioFormat) -> None:
    stated = metadata(encode_audio(AUDIO, RATE, file_format, LoopInfo(4)))
    assert (stated["LOOPSTART"], stated["LOOPLENGTH"]) == ("0", str(RATE))
    assert "LOOPSTART" not in metadata(encode_audio(AUDIO, RATE, file_format))


@pytest.mark.parametrize("file_format", get_args(AudioFormat))
@pytest.mark.parametrize("size", [254, 255, 65_025, 200_001])
def test_comments_of_any_size(file_format: AudioFormat, size: int) -> None:
    content = encode_audio(AUDIO, RATE, file_format, tags=Tags(comment="x" * size))
    assert len(decode_audio(content, RATE)) == RATE
    stated = {name.lower(): text for name, text in metadata(content).items()}
    assert stated["comment"][:50] == "x" * 50
    assert len(content) > size


def test_tags_are_ascii() -> None:
    with pytest.raises(ValueError, match="comment 'ü': must be ASCII"):
        Tags(comment="ü")
