"""Detection of DTS and AC-3 bitstreams stored as PCM samples, which play as full-scale noise.

A bitstream is recognized by several frame headers at equal distances. The search covers 16-bit words in both byte
orders, for DTS also 14-bit words, and frames with or without IEC 61937 bursts around them. The two-byte sync word of
AC-3 also occurs in music, so an AC-3 frame must have a valid checksum.

Layouts: ETSI TS 102 114 (DTS), ATSC A/52 (AC-3), IEC 61937.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio.formats import Samples, UnusableError

Words = npt.NDArray[np.uint16]
Hits = npt.NDArray[np.intp]

MIN_FRAMES = 3
"""Minimum number of frames at equal distances."""
MAX_HEADERS = 16
"""Maximum number of header candidates of one kind that are checked in a block of samples."""
HEADER_WORDS = 3

MIN_DISTANCE_WORDS = 32
MAX_DISTANCE_WORDS = 32_768
"""Length of the longest IEC 61937 burst."""
MAX_DTS_WORDS = 9_363
"""Length of a DTS frame of 16,384 bytes in 14-bit words."""
MIN_DISTINCT_WORDS = 32
"""Minimum number of distinct words in a frame.

A square wave can contain a sync word, but has few distinct values.
"""

AC3_SYNC = 0x0B77
AC3_BIT_RATES_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
LAST_AC3_VERSION, LAST_EAC3_VERSION = 10, 16
AC3_POLYNOMIAL = 0x8005
BURST_SYNC = (0xF872, 0x4E1F)
BURST_CONTENTS = {1: "AC-3", 21: "AC-3", 11: "DTS", 12: "DTS", 13: "DTS", 17: "DTS"}
"""Names of encodings by the data type of an IEC 61937 burst."""
EMPTY_BURSTS = frozenset({0, 3})

STEPS = 1_024
"""Number of steps between adjacent samples that are tested in a block."""
PARTS = 8
"""Number of parts of a block. A step is compared with the peak of its part."""
MIN_LARGE_STEPS = 3
"""Minimum number of steps larger than the peak. A block with fewer such steps is not searched.

In random samples, a quarter of the steps are larger than the peak. In most music, no steps are.
"""


class DtsSync(NamedTuple):
    """Second and third words of a normal DTS frame."""

    second: int
    third_mask: int
    third: int
    """Value of the third word under `third_mask`."""


def check_pcm(samples: npt.NDArray[np.int16] | Samples, has_24_bits: bool = False) -> None:
    """Check that a block of samples does not contain DTS or AC-3.

    Args:
        samples: Samples (n, channels), int16 or float32 in [-1, 1]. Float samples are searched as 16-bit words.
        has_24_bits: True if the file stores 24-bit samples. Their bytes are then searched as well, in both byte orders.

    Raises:
        UnusableError: The samples contain DTS or AC-3.
    """
    if not _may_be_encoded(samples):
        return
    with np.errstate(invalid="ignore"):  # a bitstream has no samples out of range
        words = samples if samples.dtype == np.int16 else np.floor(samples * np.float32(2**15)).astype(np.int16)
        streams = [words.tobytes()]
        if has_24_bits:
            low_first = (samples * np.float32(2**31)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, 1:]
            streams += [low_first.tobytes(), low_first[:, ::-1].tobytes()]
    for content in streams:
        for start in (0, 1):
            name = _encoded_content(np.frombuffer(content, np.uint16, (len(content) - start) // 2, start))
            if name is not None:
                raise UnusableError(f"contains {name}, not PCM samples")


def _may_be_encoded(samples: npt.NDArray[np.int16] | Samples) -> bool:
    """Return False if few steps between adjacent samples are larger than the peak, as in most music."""
    stride = max(1, samples.size // STEPS) | 1
    starts = samples[:-1:stride]
    steps = np.subtract(samples[1::stride][: len(starts)], starts, dtype=np.float32).reshape(-1)
    length = steps.size // PARTS
    if length == 0:
        return False
    peaks = np.abs(starts.reshape(-1)[: length * PARTS].reshape(PARTS, length)).max(axis=1, keepdims=True)
    is_large = np.abs(steps[: length * PARTS].reshape(PARTS, length)) > peaks
    return int(np.count_nonzero(is_large)) >= MIN_LARGE_STEPS


def _encoded_content(words: Words) -> str | None:
    """Return the name of the encoding if `words` contain its frames, else None."""
    for sync, frames in _FRAMES.items():
        is_sync = words[:-HEADER_WORDS] == sync
        if np.count_nonzero(is_sync) >= MIN_FRAMES:
            positions, name = frames(words, np.flatnonzero(is_sync))
            if _are_equidistant(positions):
                return name
    return None


def _are_equidistant(positions: list[int]) -> bool:
    """Return True if enough positions are equally far apart.

    Distances may differ by one word, as between AC-3 frames at 44.1 kHz.
    """
    distances = np.diff(positions)
    distances = distances[(distances >= MIN_DISTANCE_WORDS) & (distances <= MAX_DISTANCE_WORDS)]
    equal = [np.count_nonzero(np.abs(distances - distance) <= 1) for distance in distances]
    return int(max(equal, default=0)) >= MIN_FRAMES - 1


def _dts_frames(words: Words, hits: Hits, swapped: bool, sync: DtsSync) -> tuple[list[int], str]:
    """Return the `hits` that begin a DTS frame, and the name of the encoding.

    The frame must be a normal frame, or have more distinct words than a square wave.
    """
    second = _swap(sync.second) if swapped else sync.second
    hits = hits[words[hits + 1] == second][:MAX_HEADERS]
    following = [*hits[1:], len(words)][: len(hits)]
    positions = []
    for position, end in zip(hits, following, strict=True):
        is_normal_frame = _header(words, position, swapped)[2] & sync.third_mask == sync.third
        frame = words[position : min(end, position + MAX_DTS_WORDS)]
        if is_normal_frame or len(np.unique(frame)) >= MIN_DISTINCT_WORDS:
            positions.append(int(position))
    return positions, "DTS"


def _ac3_frames(words: Words, hits: Hits, swapped: bool) -> tuple[list[int], str]:
    """Return the `hits` that begin an AC-3 or Enhanced AC-3 frame, and the name of the encoding.

    The frames must have equal sizes and valid checksums.
    """
    third = words[hits + 2].byteswap() if swapped else words[hits + 2]
    hits = hits[(third >> 3 & 31 <= LAST_EAC3_VERSION) & (third >> 14 < 3)][: 4 * MAX_HEADERS]
    sizes = np.array([_ac3_words(_header(words, position, swapped)) for position in hits], int)
    for size in np.unique(sizes[sizes > 0]):
        is_complete = (np.abs(sizes - size) <= 1) & (hits + sizes <= len(words))
        starts, ends = hits[is_complete][:MAX_HEADERS], (hits + sizes)[is_complete][:MAX_HEADERS]
        if len(starts) < MIN_FRAMES:
            continue
        frames = {int(start): words[start:end] for start, end in zip(starts, ends, strict=True)}
        valid = [
            start for start, frame in frames.items() if _has_valid_checksum(frame if swapped else frame.byteswap())
        ]
        if len(valid) >= MIN_FRAMES:
            return valid, "AC-3"
    return [], "AC-3"


def _ac3_words(header: list[int]) -> int:
    """Return the size of a frame in words, 0 if the header is invalid."""
    version, rate_code, size_code = header[2] >> 3 & 31, header[2] >> 14, header[2] >> 8 & 63
    if version > LAST_AC3_VERSION:
        return (header[1] & 0x7FF) + 1
    if size_code >= 2 * len(AC3_BIT_RATES_KBPS):
        return 0
    bit_rate = AC3_BIT_RATES_KBPS[size_code >> 1]
    return (2 * bit_rate, bit_rate * 320 // 147 + (size_code & 1), 3 * bit_rate)[rate_code]


def _has_valid_checksum(frame: Words) -> bool:
    """Return True if the checksum of an AC-3 frame is valid. The bytes of `frame` are in stream order."""
    crc, table = 0, _crc_table()
    for byte in frame.tobytes()[2:]:
        crc = (crc << 8 & 0xFFFF) ^ table[crc >> 8 ^ byte]
    return crc == 0


def _bursts(words: Words, hits: Hits, swapped: bool) -> tuple[list[int], str]:
    """Return the `hits` that begin a non-empty IEC 61937 burst, and the name of the encoding."""
    hits = hits[words[hits + 1] == (_swap(BURST_SYNC[1]) if swapped else BURST_SYNC[1])][:MAX_HEADERS]
    types = {int(position): _header(words, position, swapped)[2] & 31 for position in hits}
    positions = [position for position, data_type in types.items() if data_type not in EMPTY_BURSTS]
    data_type = types[positions[0]] if positions else 0
    return positions, BURST_CONTENTS.get(data_type, f"IEC 61937 data of type {data_type}")


def _header(words: Words, position: int | np.intp, swapped: bool) -> list[int]:
    header = words[position : position + HEADER_WORDS]
    return [int(word) for word in (header.byteswap() if swapped else header)]


def _swap(word: int) -> int:
    return word >> 8 | (word & 0xFF) << 8


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (AC3_POLYNOMIAL if crc & 0x8000 else 0)) & 0xFFFF
        table.append(crc)
    return tuple(table)


_FRAMES: dict[int, Callable[[Words, Hits], tuple[list[int], str]]] = {
    (_swap(sync) if swapped else sync): partial(frames, swapped=swapped)
    for sync, frames in (
        (0x7FFE, partial(_dts_frames, sync=DtsSync(0x8001, third_mask=0xFC00, third=0xFC00))),
        (0x1FFF, partial(_dts_frames, sync=DtsSync(0xE800, third_mask=0xFFF0, third=0x07F0))),
        (BURST_SYNC[0], _bursts),
        (AC3_SYNC, _ac3_frames),
    )
    for swapped in (False, True)
}
"""Functions that find frames, by the first word of a frame."""
