"""Decoding of MP3 files with libsndfile, to the end of the last stream.

libsndfile alone stops after the length that the first header tag states, or after an estimated length. A file can hold
several streams (`cat a.mp3 b.mp3`). This module decodes each stream separately:

- Stream with a Xing tag: encoder delay and padding are removed, as libsndfile does for a file with only this stream. If
  the stream is longer than its tag states, the padding is not removed.
- Stream without a tag, in a file of several streams: the decoder delay of 529 samples is removed.
"""

import io
import struct
from collections.abc import Iterator

import soundfile

from audiodiff_core.audio.blocks import AudioFile, independent_handle, opened
from audiodiff_core.audio.containers import check_length
from audiodiff_core.audio.file_parts import FileParts
from audiodiff_core.audio.formats import Samples, UnusableError
from audiodiff_core.audio.mpeg_frames import MpegStream, frame_size, mpeg_streams
from audiodiff_core.audio.sndfile import ForwardSoundFile, channel_blocks

UNCOUNTED_FRAMES = 2
"""Maximum number of frames by which a complete file may exceed the count in its tag.

Encoders disagree on whether the frame of the tag itself is counted.
"""
XING_FIELD_BYTES = {1: 4, 2: 4, 4: 100, 8: 4}
"""Sizes of the Xing fields by flag: number of frames, number of bytes, table of positions, quality."""
DELAYS_OFFSET = 21
"""Distance in bytes from the end of the Xing fields to the encoder delay and padding."""


def mp3_blocks(sound: soundfile.SoundFile, file: AudioFile) -> Iterator[Samples]:
    """Decode all streams of an MP3 file.

    Args:
        sound: The file as opened by libsndfile.
        file: The same file.

    Yields:
        Blocks (channels, n).

    Raises:
        UnusableError: The file is truncated, its streams have different sample rates, or a stream of layer 1 or 2
            cannot be decoded to its end.
    """
    with opened(independent_handle(file)) as content:
        streams = mpeg_streams(content)
    if len(streams) <= 1 and not (streams and _is_cut_by_sndfile(streams[0], sound)):
        yield from _checked(sound, streams[0] if streams else None)
        return
    sound.close()
    rates = sorted({stream.kind.rate for stream in streams})
    if len(rates) > 1:
        raise UnusableError(f"holds successive MP3 streams of {rates[0]} and {rates[1]} Hz; split the file")
    for stream in streams:
        if stream.kind.layer != 3:
            seconds = sum(stream.samples for stream in streams) / rates[0]
            layer = f"MPEG audio layer {stream.kind.layer}"
            raise UnusableError(
                f"holds {seconds:.2f} seconds of {layer} that cannot be read to the end; convert the file"
            )
        with opened(independent_handle(file)) as content:
            parts = FileParts(content, [_header_tag(stream), *stream.spans])
            yield from _checked(ForwardSoundFile(io.BufferedReader(parts)), stream)


def _is_cut_by_sndfile(stream: MpegStream, sound: soundfile.SoundFile) -> bool:
    """Return True if libsndfile alone would not decode all frames of `stream`."""
    if len(stream.spans) > 1:
        return True
    if stream.stated_frames is None:
        return int(sound.frames) < stream.samples
    return stream.stated_frames + UNCOUNTED_FRAMES < stream.frames


def _checked(sound: soundfile.SoundFile, stream: MpegStream | None) -> Iterator[Samples]:
    """Yield the blocks of `sound`, and check its length against the tag or the frames of `stream`."""
    length = sound.frames
    if stream and stream.stated_frames is None:
        tag_as_audio = stream.kind.samples if stream.tag else 0  # libsndfile decodes a VBRI tag as audio
        length = min(length, stream.samples + tag_as_audio)  # libsndfile also counts bytes after the last frame
    with sound:
        read = yield from channel_blocks(sound, length)
        if stream:
            check_length(read, length, sound.samplerate)


def _header_tag(stream: MpegStream) -> bytes:
    """Return a frame with a Xing tag that states the number of frames in `stream`."""
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
    """Return a new frame with a Xing tag that states `count`."""
    no_checksum, bit_rate_index = 1, 9 << 4  # 128 kbit/s in MPEG 1, 80 kbit/s in MPEG 2: large enough for the tag
    first = stream.first_header
    header = bytes([first[0], first[1] | no_checksum, bit_rate_index | first[2] & 0x0C, first[3]])
    size = frame_size(header)
    return (header.ljust(stream.kind.xing_offset, b"\0") + b"Xing\0\0\0\1" + count).ljust(size, b"\0")
