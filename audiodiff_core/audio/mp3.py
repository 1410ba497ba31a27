"""Decode MP3 with libsndfile, which by itself ends at the length of the first header tag or at its own estimate.

A file of several streams (`cat a.mp3 b.mp3`) is read to the end of the last one. Each stream is decoded by itself. The
delay and padding of the encoder are removed from a stream with a Xing tag, as from a file of this stream alone. From a
stream that holds more than its tag states, the padding is not removed. From a stream without a tag that is not alone,
the decoder's delay of 529 samples is removed.
"""

import io
import struct
from collections.abc import Iterator

import soundfile

from audiodiff_core.audio.blocks import AudioFile, independent, opened
from audiodiff_core.audio.containers import check_length
from audiodiff_core.audio.file_parts import FileParts
from audiodiff_core.audio.formats import Samples, UnusableError
from audiodiff_core.audio.mpeg_frames import MpegStream, frame_size, mpeg_streams
from audiodiff_core.audio.sndfile import ForwardSoundFile, channel_blocks

UNCOUNTED_FRAMES = 2
"""Frames by which the count of a tag is too small in whole files: encoders disagree whether the tag itself counts."""
XING_FIELD_BYTES = {1: 4, 2: 4, 4: 100, 8: 4}
"""By their flags: number of frames, number of bytes, table of positions, quality."""
DELAYS_OFFSET = 21
"""Position of the encoder's delay and padding, after the fields of the Xing tag."""


def mp3_blocks(sound: soundfile.SoundFile, file: AudioFile) -> Iterator[Samples]:
    """Yield all samples in `file` in blocks (channels, n); `sound` is the file as libsndfile opens it."""
    with opened(independent(file)) as content:
        streams = mpeg_streams(content)
    if len(streams) <= 1 and not (streams and _holds_more(streams[0], sound)):
        yield from _checked(sound, streams[0] if streams else None)
        return
    sound.close()
    rates = sorted({stream.kind.rate for stream in streams})
    if len(rates) > 1:
        raise UnusableError(f"holds MP3 streams of {rates[0]} and {rates[1]} Hz, one after the other; split the file")
    for stream in streams:
        if stream.kind.layer != 3:
            seconds = sum(stream.samples for stream in streams) / rates[0]
            layer = f"MPEG audio layer {stream.kind.layer}"
            raise UnusableError(
                f"holds {seconds:.2f} seconds of {layer} that cannot be read to the end; convert the file"
            )
        with opened(independent(file)) as content:
            parts = FileParts(content, [_header_tag(stream), *stream.spans])
            yield from _checked(ForwardSoundFile(io.BufferedReader(parts)), stream)


def _holds_more(stream: MpegStream, sound: soundfile.SoundFile) -> bool:
    """True if libsndfile would not read `stream` to its end, or would lose its frames at other bytes between them."""
    if len(stream.spans) > 1:
        return True
    if stream.stated_frames is None:
        return int(sound.frames) < stream.samples
    return stream.stated_frames + UNCOUNTED_FRAMES < stream.frames


def _checked(sound: soundfile.SoundFile, stream: MpegStream | None) -> Iterator[Samples]:
    """The blocks of `sound`, which is `stream`. Raises UnusableError where it ends before its tag or its frames do."""
    length = sound.frames
    if stream and stream.stated_frames is None:
        tag_as_audio = stream.kind.samples if stream.tag else 0  # libsndfile does not know VBRI
        length = min(length, stream.samples + tag_as_audio)  # tags and other bytes follow
    with sound:
        read = yield from channel_blocks(sound, length)
        if stream:
            check_length(read, length, sound.samplerate)


def _header_tag(stream: MpegStream) -> bytes:
    """A frame whose Xing tag states the number of frames in `stream`: its own tag where possible."""
    count = struct.pack(">I", stream.frames)
    if stream.stated_frames is None:
        return _new_tag(stream, count)
    if stream.frames <= stream.stated_frames + UNCOUNTED_FRAMES:
        return stream.tag
    tag = bytearray(stream.tag)
    fields = stream.kind.xing_offset + 8
    tag[fields : fields + 4] = count
    flags = tag[fields - 1]
    delays = fields + sum(size for bit, size in XING_FIELD_BYTES.items() if flags & bit) + DELAYS_OFFSET
    if delays + 3 <= len(tag):  # 12 bits of delay, 12 bits of padding
        tag[delays + 1] &= 0xF0
        tag[delays + 2] = 0
    return bytes(tag)


def _new_tag(stream: MpegStream, count: bytes) -> bytes:
    """A frame of 128 kbit/s, or 80 of MPEG 2, into which a tag fits at every sample rate."""
    with_no_checksum, bit_rate_index = 1, 9 << 4
    first = stream.first_header
    header = bytes([first[0], first[1] | with_no_checksum, bit_rate_index | first[2] & 0x0C, first[3]])
    size = frame_size(header)
    return (header.ljust(stream.kind.xing_offset, b"\0") + b"Xing\0\0\0\1" + count).ljust(size, b"\0")
