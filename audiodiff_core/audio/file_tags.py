"""Tags of audio files: tempo, key, loop points and a comment, in the fields that players and game engines read.

    wav        LIST/INFO chunk: ISFT, ICMT
    flac, ogg  Vorbis comments: BPM, INITIALKEY, LOOPSTART and LOOPLENGTH in samples, COMMENT, ENCODER
    mp3        ID3: TBPM, TKEY, COMM, TSSE

The chunks of `wav_chunks` state the tempo and the loop points of a WAV file. INFO has no field for the key.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from audiodiff_core.audio.formats import AudioFormat
from audiodiff_core.audio.id3 import id3_tag
from audiodiff_core.audio.vorbis_comments import flac_with_comments, ogg_with_comments
from audiodiff_core.audio.wav_chunks import with_info


@dataclass(frozen=True)
class Tags:
    """Tags of an audio file. Empty tags leave the file as it is.

    Args:
        bpm: Tempo in beats per minute, or None. MP3 files state it as a whole number.
        key: Key as a root and, for minor keys, an m, such as C or F#m; or None.
        comment: Comment in ASCII, or an empty text.
        software: Name of the writing program in ASCII, or an empty text.
    """

    bpm: float | None = None
    key: str | None = None
    comment: str = ""
    software: str = ""

    def __post_init__(self) -> None:
        for name, text in (("comment", self.comment), ("software", self.software)):
            if not text.isascii():
                raise ValueError(f"{name} {text!r}: must be ASCII")


NO_TAGS = Tags()


def with_tags(content: bytes, file_format: AudioFormat, tags: Tags, loop_samples: int | None = None) -> bytes:
    """Add tags to an audio file.

    Args:
        content: The bytes of a file that libsndfile wrote.
        file_format: Format of the file.
        tags: The tags.
        loop_samples: Length in samples of audio that loops from its first to its last sample, or None for other audio.
            Only flac and ogg files state it here.

    Returns:
        The bytes of the file with the tags. The encoded audio is that of `content`.
    """
    bpm = tags.bpm
    match file_format:
        case "wav":
            return with_info(content, _stated({"ISFT": tags.software, "ICMT": tags.comment}))
        case "mp3":
            texts = {"TBPM": "" if bpm is None else str(round(bpm)), "TKEY": tags.key, "TSSE": tags.software}
            return id3_tag(_stated(texts), tags.comment) + content
        case "flac" | "ogg":
            fields = {
                "BPM": "" if bpm is None else f"{round(bpm, 2):g}",
                "INITIALKEY": tags.key,
                "LOOPSTART": "" if loop_samples is None else "0",
                "LOOPLENGTH": "" if loop_samples is None else str(loop_samples),
                "COMMENT": tags.comment,
                "ENCODER": tags.software,
            }
            return (flac_with_comments if file_format == "flac" else ogg_with_comments)(content, _stated(fields))


def _stated(texts: Mapping[str, str | None]) -> list[tuple[str, str]]:
    return [(name, text) for name, text in texts.items() if text]
