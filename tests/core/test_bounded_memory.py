"""Small files that state or hold large contents.

Sizes are limited before memory is allocated. Decoding stops at the end of the requested part.
"""

import io
import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from audiodiff_core.audio import LONGEST_DECODED_S, AudioDecodeError, decode_audio, stream
from audiodiff_core.audio.formats import UnusableError
from audiodiff_core.audio.mp4 import MAX_BOXES, MAX_PACKETS, check_sample_tables
from audiodiff_core.compat.mel import Mel as CompatMel
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.mel.slices import Slicing, pieces
from audiodiff_core.pipeline.sources import MAX_TRACK_COLUMNS, Audio, source_slice, track_image
from tests.malformed import aac

RATE = 22_050
MEL = MelConfig(x_res=64, y_res=64, sample_rate=RATE, n_fft=1_024, hop_length=512)


def noise(seconds: float, rate: int = RATE) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(0).standard_normal(round(seconds * rate)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 60 s of audio with a damaged end. Decoding fails when it reaches the damage."""
    file = tmp_path_factory.mktemp("damaged") / "song.flac"
    soundfile.write(file, noise(60), RATE)
    content = file.read_bytes()
    file.write_bytes(content[: -len(content) // 10] + bytes(len(content) // 10))
    with pytest.raises(AudioDecodeError, match="corrupt"):
        decode_audio(file, RATE)
    return file


class TestDecode:
    @pytest.mark.parametrize("rate", [RATE, 48_000, 8_000])
    @pytest.mark.parametrize(
        ("start_s", "duration_s"), [(0, 1.25), (3.1, 0.5), (6.0, None), (0, None), (7.9, 5.0), (9.0, 1.0), (2.0, 0.0)]
    )
    def test_a_part_is_that_of_the_whole(
        self, start_s: float, duration_s: float | None, rate: int, tmp_path: Path
    ) -> None:
        soundfile.write(tmp_path / "song.wav", np.tile(noise(8)[:, np.newaxis], (1, 2)), RATE)
        whole = decode_audio(tmp_path / "song.wav", rate)
        end_s = 8 if duration_s is None else start_s + duration_s
        part = decode_audio((tmp_path / "song.wav").read_bytes(), rate, start_s=start_s, duration_s=duration_s)
        assert part.dtype == np.float32
        assert np.array_equal(part, whole[round(start_s * rate) : round(end_s * rate)])

    def test_the_whole_is_what_stream_gives(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "song.wav", noise(8), RATE)
        assert np.array_equal(
            decode_audio(tmp_path / "song.wav", 48_000), np.concatenate(list(stream(tmp_path / "song.wav", 48_000)))
        )

    def test_a_part_is_decoded_no_further_than_its_end(self, damaged: Path) -> None:
        assert len(decode_audio(damaged, RATE, start_s=10, duration_s=10)) == 10 * RATE

    @pytest.mark.parametrize("as_bytes", [False, True])
    def test_what_exceeds_the_bound_is_decoded_no_further(self, damaged: Path, as_bytes: bool) -> None:
        with pytest.raises(
            AudioDecodeError, match=r"lasts \d+ s or more, at most 20 s are decoded at once: use"
        ) as raised:
            decode_audio(damaged.read_bytes() if as_bytes else damaged, RATE, longest_s=20)
        assert "\n" not in str(raised.value)

    def test_the_bound_counts_what_is_kept(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "song.wav", noise(8), RATE)
        assert len(decode_audio(tmp_path / "song.wav", RATE, longest_s=8)) == 8 * RATE
        assert len(decode_audio(tmp_path / "song.wav", RATE, start_s=4, longest_s=4)) == 4 * RATE
        with pytest.raises(AudioDecodeError, match="at most 7 s"):
            decode_audio(tmp_path / "song.wav", RATE, longest_s=7)

    @pytest.mark.soak_short
    def test_there_is_a_bound_by_default(self, tmp_path: Path) -> None:
        with soundfile.SoundFile(tmp_path / "long.flac", "w", 1_000, 1) as file:
            for _ in range(round(LONGEST_DECODED_S / 600) + 1):
                file.write(np.zeros(600_000, np.float32))
        assert (tmp_path / "long.flac").stat().st_size < 1 << 20
        with pytest.raises(AudioDecodeError, match=f"at most {LONGEST_DECODED_S:.0f} s are decoded at once"):
            decode_audio(tmp_path / "long.flac", 1_000)
        assert len(decode_audio(tmp_path / "long.flac", 48_000, start_s=100, duration_s=1)) == 48_000
        assert sum(len(block) for block in stream(tmp_path / "long.flac", 1_000)) > LONGEST_DECODED_S * 1_000
        with pytest.raises(ValueError, match=f"long.flac: lasts more than {LONGEST_DECODED_S:.0f} s"):
            CompatMel(sample_rate=1_000, hop_length=16).load_audio(tmp_path / "long.flac")

    @pytest.mark.parametrize(
        ("start_s", "duration_s"), [(-1, None), (1, -1), (0, math.inf), (math.inf, None), (0, math.nan)]
    )
    def test_a_part_that_is_none_is_refused(self, start_s: float, duration_s: float | None, damaged: Path) -> None:
        with pytest.raises(ValueError, match=rf"start_s {start_s}, duration_s {duration_s}"):
            decode_audio(damaged, RATE, start_s=start_s, duration_s=duration_s)


class TestSources:
    def test_a_slice_is_decoded_no_further_than_its_end(self, damaged: Path) -> None:
        expected = dict(list(zip(range(20), pieces(damaged, Mel(MEL), Slicing()), strict=False)))
        for index in (0, 7, 19):
            image = source_slice(Audio(damaged, slice=index), MEL, MEL.x_res).image
            assert np.array_equal(image, Mel(MEL).images(expected[index].samples[np.newaxis])[0][0])

    def test_a_slice_that_a_file_does_not_have_is_named(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "song.wav", noise(4), RATE)
        for index, reason in (
            (2, "slice 2: the audio has 2 of 1.49 s, use 0 to 1"),
            (-1, "slice -1: slices are counted from 0"),
            (10**9, "slice .* ends at"),
        ):
            with pytest.raises(ValueError, match=reason):
                source_slice(Audio(tmp_path / "song.wav", slice=index), MEL, MEL.x_res)

    def test_a_track_is_decoded_no_further_than_the_longest(self, damaged: Path) -> None:
        fine = MEL.model_copy(update={"hop_length": 32, "n_fft": 512})
        with pytest.raises(ValueError, match=f"at most {MAX_TRACK_COLUMNS * 32 / RATE:.0f} s are decoded"):
            track_image(Audio(damaged), fine)


@pytest.fixture(scope="module")
def m4a() -> bytes:
    """Return half a second of AAC in a file whose last box is `moov`."""
    content = aac(np.tile(noise(0.5, 44_100)[:, np.newaxis], (1, 2)), "mp4")
    assert content.index(b"mdat") < content.index(b"moov")
    return content


def put(content: bytes, box: bytes, *values: int) -> bytes:
    """Overwrite the first 32-bit numbers of a box."""
    at = content.index(box) + 4
    return content[:at] + struct.pack(f">{len(values)}I", *values) + content[at + 4 * len(values) :]


def stating(content: bytes, packets: int) -> bytes:
    """Return the file with sample tables for `packets` packets of one byte in one chunk."""
    content = put(content, b"stsz", 0, 1, packets)
    content = put(content, b"stts", 0, 1, packets, 1_024)
    return put(content, b"stsc", 0, 1, 1, packets)


def resized(content: bytes, box: bytes, size: int) -> bytes:
    at = content.index(box) - 4
    return content[:at] + struct.pack(">I", size) + content[at + 4 :]


def with_box(content: bytes, path: list[bytes], box: bytes) -> bytes:
    """Replace the box at a path below `moov`, the last box of a file."""
    starts, position = [], 0
    for kind in path:
        starts.append(content.index(kind, position) - 4)
        position = starts[-1] + 8
    at = starts.pop()
    size = int.from_bytes(content[at : at + 4], "big")
    content = content[:at] + box + content[at + size :]
    for start in starts:
        whole = int.from_bytes(content[start : start + 4], "big") + len(box) - size
        content = content[:start] + struct.pack(">I", whole) + content[start + 4 :]
    return content


def table(kind: bytes, *numbers: int) -> bytes:
    return struct.pack(">I4s", 8 + 4 * len(numbers), kind) + struct.pack(f">{len(numbers)}I", *numbers)


class TestMp4:
    def test_ordinary_files_are_read(self, m4a: bytes) -> None:
        assert len(decode_audio(m4a, RATE)) > 0.4 * RATE
        assert np.array_equal(decode_audio(resized(m4a, b"moov", 0), RATE), decode_audio(m4a, RATE))
        check_sample_tables(io.BytesIO(m4a))

    @pytest.mark.parametrize("box", [b"moov", b"trak", b"stbl"])
    def test_a_box_of_size_0_hides_no_table(self, m4a: bytes, box: bytes) -> None:
        with pytest.raises(AudioDecodeError, match="states packets of 20000000 bytes or more"):
            decode_audio(resized(stating(m4a, 20_000_000), box, 0), RATE)

    def test_a_box_with_a_64_bit_size_hides_no_table(self, m4a: bytes) -> None:
        content = stating(m4a, 20_000_000)
        at = content.index(b"moov") - 4
        body = content[at + 8 :]
        with pytest.raises(AudioDecodeError, match="states packets of 20000000 bytes or more"):
            decode_audio(content[:at] + struct.pack(">I4sQ", 1, b"moov", len(body) + 16) + body, RATE)

    @pytest.mark.parametrize("name", [b"free", b"hoov"])
    def test_a_disguised_header_hides_no_table(self, m4a: bytes, name: bytes) -> None:
        with pytest.raises(AudioDecodeError, match="states packets of 20000000 bytes or more"):
            decode_audio(stating(m4a, 20_000_000).replace(b"moov", name), RATE)

    def test_a_padded_file_states_no_more_packets_than_are_read(self, m4a: bytes) -> None:
        with pytest.raises(AudioDecodeError, match=f"states {MAX_PACKETS + 1} packets: must be at most {MAX_PACKETS}"):
            decode_audio(stating(m4a, MAX_PACKETS + 1) + bytes(MAX_PACKETS), RATE)

    def test_a_compact_table_has_room_in_the_file(self, m4a: bytes) -> None:
        for bits, count in ((4, 200_000), (8, 100_000), (16, 50_000)):
            with pytest.raises(UnusableError, match="states packets of 100000 bytes or more"):
                check_sample_tables(io.BytesIO(put(m4a.replace(b"stsz", b"stz2"), b"stz2", 0, bits, count)))

    def test_runs_of_fragments_are_counted_together(self) -> None:
        content = aac(
            np.tile(noise(0.5, 44_100)[:, np.newaxis], (1, 2)),
            "mp4",
            {"movflags": "frag_keyframe+empty_moov", "frag_duration": "100000"},
        )
        check_sample_tables(io.BytesIO(content))
        runs = table(b"trun", 0, 5_000) * 300
        at, traf, moof = (content.index(kind) - 4 for kind in (b"trun", b"traf", b"moof"))
        content = content[:at] + runs + content[at:]
        for start in (traf, moof):
            content = (
                content[:start]
                + struct.pack(">I", int.from_bytes(content[start : start + 4], "big") + len(runs))
                + content[start + 4 :]
            )
        with pytest.raises(UnusableError, match="states packets of"):
            check_sample_tables(io.BytesIO(content))

    def test_packets_count_again_in_each_edit(self, m4a: bytes) -> None:
        edits = 500_000
        content = with_box(
            m4a, [b"moov", b"trak", b"edts", b"elst"], table(b"elst", 0, edits, *(1_000, 0, 0x1_0000) * edits)
        )
        with pytest.raises(UnusableError, match=f"packets: must be at most {MAX_PACKETS}"):
            check_sample_tables(io.BytesIO(content))

    def test_frames_of_pcm_count_by_their_chunks(self, m4a: bytes) -> None:
        frames = 20_000_000  # FFmpeg indexes PCM in groups of 1,024 frames
        pcm = put(stating(m4a, frames), b"stts", 0, 1, frames, 1) + bytes(frames)
        check_sample_tables(io.BytesIO(pcm))
        chunks = with_box(
            put(pcm[:-frames], b"stsc", 0, 1, 1, (1 << 31) - 1),
            [b"moov", b"trak", b"stco"],
            table(b"stco", 0, 40, *range(40, 80)),
        )
        with pytest.raises(UnusableError, match=f"packets: must be at most {MAX_PACKETS}"):
            check_sample_tables(io.BytesIO(chunks + bytes(frames)))
        with pytest.raises(UnusableError, match=f"states {frames} packets"):
            check_sample_tables(io.BytesIO(pcm.replace(b"soun", b"vide")))

    def test_a_compressed_header_is_refused(self, m4a: bytes) -> None:
        at = m4a.index(b"moov") - 4
        with pytest.raises(UnusableError, match="compressed"):
            check_sample_tables(io.BytesIO(m4a[:at] + struct.pack(">I4sI4s", 24, b"moov", 16, b"cmov") + bytes(8)))

    @pytest.mark.soak_short
    def test_boxes_are_bounded(self, m4a: bytes) -> None:
        with pytest.raises(AudioDecodeError, match=f"more than {MAX_BOXES} MP4 boxes"):
            decode_audio(m4a + struct.pack(">I4s", 8, b"skip") * MAX_BOXES, RATE)
