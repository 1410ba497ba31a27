"""Detection of DTS and AC-3 streams stored as PCM samples, in every byte order, width and container.

Real samples are accepted.
"""

import io
import struct
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from audiodiff_core.audio import AudioDecodeError, decode_audio
from audiodiff_core.audio.bitstreams import check_pcm
from tests.rare import rare

RATE = 48_000

Words = npt.NDArray[np.int16]


def ac3(muxer: str = "ac3", codec: str = "ac3", rate: int = RATE, bit_rate: int = 384_000, seconds: float = 2) -> bytes:
    random = np.random.default_rng(0)
    time = np.arange(int(seconds * rate)) / rate
    samples = np.stack([0.3 * np.sin(time * 2_765), random.uniform(-0.3, 0.3, len(time))]).astype(np.float32)
    buffer = io.BytesIO()
    container: Any = av.open(buffer, "w", format=muxer)
    with container:
        track = container.add_stream(codec, rate=rate, layout="stereo")
        track.bit_rate = bit_rate
        for start in range(0, samples.shape[1] - 1_536, 1_536):
            frame: Any = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, start : start + 1_536]), format="fltp", layout="stereo"
            )
            frame.sample_rate, frame.pts = rate, start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return buffer.getvalue()


def dts(size: int = 1_006, frames: int = 100, payload: bytes | None = None) -> bytes:
    """Return DTS frames of `size` bytes for stereo at 48 kHz, with 512 samples per frame.

    The payload is random by default.
    """
    fields = ((0x7FFE8001, 32), (1, 1), (31, 5), (0, 1), (15, 7), (size - 1, 14), (2, 6), (13, 4), (15, 5))
    bits = "".join(format(value, f"0{width}b") for value, width in fields).ljust(80, "0")
    header = int(bits, 2).to_bytes(10, "big")
    random = np.random.default_rng(size)
    return b"".join(header + (payload or random.bytes(size))[: size - len(header)] for _ in range(frames))


def big(content: bytes) -> Words:
    return np.frombuffer(content[: len(content) // 2 * 2], ">i2").astype(np.int16)


def little(content: bytes) -> Words:
    return big(content).byteswap()


def packed_14_bits(content: bytes) -> Words:
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    values = bits[: len(bits) // 14 * 14].reshape(-1, 14) @ (1 << np.arange(13, -1, -1))
    return np.where(values >= 1 << 13, values - (1 << 14), values).astype(np.int16)


ORDERS = {
    "16-big": big,
    "16-little": little,
    "14-big": packed_14_bits,
    "14-little": lambda content: packed_14_bits(content).byteswap(),
}


def music(count: int) -> Words:
    random = np.random.default_rng(count)
    return (8_000 * np.sin(np.arange(count) / 15) + 500 * random.standard_normal(count)).astype(np.int16)


def wav(words: Words, channels: int = 2, file_format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    words = words[: len(words) // channels * channels]
    samples = words.reshape(-1, channels)
    buffer = io.BytesIO()
    exact = samples if subtype == "PCM_16" else samples / 32_768
    soundfile.write(buffer, exact, RATE, format=file_format, subtype=subtype)
    return buffer.getvalue()


def refused(content: bytes, name: str) -> None:
    with pytest.raises(AudioDecodeError, match=f"contains {name}, not PCM samples"):
        decode_audio(content, 22_050)


def test_the_frames_of_these_tests_are_dts() -> None:
    container: Any = av.open(io.BytesIO(dts(1_006)), format="dts")
    assert [packet.size for packet in container.demux(audio=0)][:20] == [1_006] * 20


@pytest.mark.parametrize("size", [1_006, 1_007, 2_048])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_dts_in_every_order(order: Any, size: int) -> None:
    words = order(dts(size))
    refused(wav(words), "DTS")
    refused(wav(words, channels=1), "DTS")


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("lead", ["silence", "music", rare("long-music")])
def test_dts_anywhere_in_the_data(order: Any, lead: str) -> None:
    before = {"silence": np.zeros(300_000, np.int16), "music": music(100_000), "long-music": music(2_000_000)}[lead]
    for frames in (20, 400):
        refused(wav(np.concatenate([before, order(dts(frames=frames)), music(50_000)])), "DTS")


@pytest.mark.parametrize("bit_rate", [64_000, 192_000, 640_000])
@pytest.mark.parametrize("rate", [32_000, 44_100, 48_000])
@pytest.mark.parametrize("order", [big, little])
def test_ac3_of_every_size_of_frames(order: Any, rate: int, bit_rate: int) -> None:
    refused(wav(order(ac3(rate=rate, bit_rate=bit_rate))), "AC-3")


@pytest.mark.parametrize("order", [big, little])
@pytest.mark.parametrize("codec", ["ac3", "eac3"])
@pytest.mark.parametrize("bit_rate", [64_000, 640_000])
def test_bursts_between_zeros(order: Any, codec: str, bit_rate: int) -> None:
    bursts = ac3("spdif", codec, bit_rate=bit_rate)
    refused(wav(order(bursts)), "AC-3")
    refused(wav(np.concatenate([np.zeros(200_000, np.int16), order(bursts)])), "AC-3")
    refused(wav(order(ac3("ac3" if codec == "ac3" else "eac3", codec, bit_rate=bit_rate))), "AC-3")


def test_bursts_of_dts() -> None:
    frame = dts(1_006, frames=1)
    bursts = b"".join(
        struct.pack(">4H", 0xF872, 0x4E1F, 11, 8 * len(frame)) + frame + bytes(2_048 - 8 - len(frame))
        for _ in range(60)
    )
    for order in (big, little):
        refused(wav(order(bursts)), "DTS")


@pytest.mark.parametrize(
    ("file_format", "subtype"),
    [("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("AIFF", "PCM_16"), ("AIFF", "PCM_24")],
)
@pytest.mark.parametrize("kind", ["dts", "dts-14", "ac3"])
def test_other_encodings_of_the_same_words(file_format: str, subtype: str, kind: str) -> None:
    words = {"dts": little(dts()), "dts-14": packed_14_bits(dts()), "ac3": little(ac3())}[kind]
    refused(wav(words, 2, file_format, subtype), "AC-3" if kind == "ac3" else "DTS")


@pytest.mark.parametrize("file_format", ["FLAC", "CAF", "AU", "W64", "RF64"])
def test_other_containers(file_format: str) -> None:
    refused(wav(little(dts()), 2, file_format), "DTS")
    refused(wav(little(ac3()), 2, file_format), "AC-3")


def test_bytes_in_samples_of_24_bits() -> None:
    for content, name in ((dts(2_013, 200), "DTS"), (ac3(), "AC-3")):
        data = content[: len(content) // 6 * 6]
        header = wav(np.zeros(2, np.int16), subtype="PCM_24")[:40]
        refused(header[:4] + struct.pack("<I", 36 + len(data)) + header[8:] + struct.pack("<I", len(data)) + data, name)


@pytest.mark.parametrize("name", ["dts", "ac3"])
def test_words_at_an_odd_position(name: str) -> None:
    content = b"\0" + (dts(2_048) if name == "dts" else ac3()) + b"\0"
    refused(wav(little(content)), "DTS" if name == "dts" else "AC-3")


@pytest.mark.parametrize("order", [big, little])
@pytest.mark.parametrize("silence", [0, 20_000, 400_000])
def test_an_unfinished_wav(order: Any, silence: int) -> None:
    content = wav(np.concatenate([np.zeros(silence, np.int16), order(dts(2_048, 300))]))
    unfinished = content[:4] + struct.pack("<I", 36) + content[8:40] + bytes(4) + content[44:]
    refused(unfinished, "DTS")


def test_noise_is_samples() -> None:
    random = np.random.default_rng(7)
    for _ in range(100):
        check_pcm(random.integers(-(1 << 15), 1 << 15, (65_536, 2), np.int16))
    for scale in (100, 3_000, 12_000):
        check_pcm((scale * random.standard_normal((65_536, 2))).clip(-32_768, 32_767).astype(np.int16))
    check_pcm(
        random.integers(-(1 << 23), 1 << 23, (65_536, 2)).astype(np.float32) / np.float32(1 << 23), has_24_bits=True
    )


SYNC_WORDS = (
    0x7FFE,
    0x8001,
    0xFE7F,
    0x0180,
    0x1FFF,
    0xE800,
    0xFF1F,
    0x00E8,
    0x0B77,
    0x770B,
    0xF872,
    0x4E1F,
    0x72F8,
    0x1F4E,
)


@pytest.mark.parametrize("high", [0x7FFE, 0x7FFF, 0x1FFF, 0x0180])
@pytest.mark.parametrize("low", [0x8001, 0x8000, 0xE800, 0xFE7F])
def test_square_waves_are_samples(high: int, low: int) -> None:
    for period in (2, 3, 64, 100, 256, 512, 1_000, 3_072, 4_000):
        wave = np.where(np.arange(65_536) % period < period // 2, high, low).astype(np.uint16).view(np.int16)
        check_pcm(wave[:, None])
        check_pcm(np.stack([wave, wave], axis=1))
        check_pcm(np.stack([wave, -1 - wave], axis=1))


def test_periodic_signals_are_samples() -> None:
    """Check periodic signals, in which a sync word of two bytes recurs at a constant distance."""
    random = np.random.default_rng(3)
    for period in (48, 64, 96, 128, 256, 384, 512, 768, 1_024, 1_536, 3_072):
        for sync in SYNC_WORDS:
            for _ in range(3):
                one = random.integers(0, 1 << 16, period).astype(np.uint16)
                one[period // 3] = sync
                check_pcm(np.tile(one, 65_536 // period).view(np.int16)[:, None])


@pytest.mark.parametrize("word", SYNC_WORDS)
def test_constants_are_samples(word: int) -> None:
    check_pcm(np.full((65_536, 2), word, np.uint16).view(np.int16))
    alternating = np.full(65_536, word, np.uint16)
    alternating[::2] = 0
    check_pcm(alternating.view(np.int16)[:, None])


def test_saws_and_sweeps_are_samples() -> None:
    time = np.arange(400_000)
    for frequency in (0.0007, 0.00371, 0.01, 0.0203):
        saw = (2 * (time * frequency % 1) - 1) * 32_767
        check_pcm(saw.astype(np.int16)[:65_536, None])
        check_pcm(np.floor(saw).astype(np.int16)[:65_536, None])
    sweep = np.sign(np.sin(time * time * 1e-7)) * 32_766.5
    check_pcm(np.floor(sweep[:65_536]).astype(np.int16)[:, None])
    check_pcm(np.floor(sweep[-65_536:]).astype(np.int16)[:, None])


def test_16_bit_samples_are_librosas_numbers() -> None:
    samples = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, (70_000, 2), np.int16)
    samples[:3] = [[-32_768, -32_768], [32_767, 32_767], [1, 0]]
    for file_format in ("WAV", "AIFF", "FLAC"):
        content = wav(samples.reshape(-1), 2, file_format)
        expected, _ = soundfile.read(io.BytesIO(content), dtype="float32")
        np.testing.assert_array_equal(decode_audio(content, RATE), (expected[:, 0] + expected[:, 1]) * np.float32(0.5))
