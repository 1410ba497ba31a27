"""Edited Ogg files of several encoders: libsndfile's samples of each link, or a reason."""

import dataclasses
import functools
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import librosa
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from audiodiff_core.audio import AudioDecodeError, decode_audio
from tests.conftest import LOOPS
from tests.ogg_streams import (
    FIRST,
    LAST,
    Packet,
    Page,
    ffmpeg_ogg,
    joined,
    packets_of,
    paged,
    pages_of,
    renumbered,
    sndfile_ogg,
    with_granules,
    without_end,
)
from tests.rare import rare, rare_but

Samples = npt.NDArray[np.float32]

ENCODERS: dict[str, Callable[[Samples], bytes]] = {
    "vorbis-libsndfile": lambda samples: sndfile_ogg(samples, 44_100),
    "vorbis-ffmpeg": lambda samples: ffmpeg_ogg(samples, 44_100, "vorbis"),
    "opus-libsndfile": lambda samples: sndfile_ogg(samples, 48_000, "OPUS"),
    "opus-libsndfile-16k": lambda samples: sndfile_ogg(samples[::3], 16_000, "OPUS"),
    "opus-ffmpeg": lambda samples: ffmpeg_ogg(samples, 48_000, "libopus"),
    "flac-ffmpeg": lambda samples: ffmpeg_ogg(samples, 44_100, "flac"),
}
ANY = rare_but(("vorbis-libsndfile", "opus-libsndfile", "flac-ffmpeg"), ENCODERS)
LOSSY = [encoder for encoder, name in zip(ANY, ENCODERS, strict=True) if not name.startswith("flac")]
TAG = b"TAG" + bytes(125)
ID3 = b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)


@functools.cache
def encoded(encoder: str, start: int = 0, frames: int = 140_000) -> bytes:
    """Return encoded music in a few pages."""
    samples, _ = soundfile.read(LOOPS / "loop_mika.flac", start=start, frames=frames, dtype="float32")
    return ENCODERS[encoder](samples)


def rate_of(content: bytes) -> int:
    with io.BytesIO(content) as file:
        return 44_100 if content[28:33] == b"\x7fFLAC" else int(soundfile.info(file).samplerate)


def decoded(content: bytes) -> Samples:
    """Return the channel mean at the rate of the file."""
    return decode_audio(content, rate_of(content))


def by_libsndfile(content: bytes) -> Samples:
    samples, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return np.asarray(samples.mean(axis=1), np.float32)


def assert_same(samples: Samples, expected: Samples) -> None:
    assert len(expected)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-6)


def header_packets(packets: Sequence[Packet]) -> int:
    return 3 if packets[0].content[1:7] == b"vorbis" else 2


def header_pages(pages: Sequence[Page]) -> int:
    """Return the number of pages of the header."""
    ends = itertools.accumulate(len(packets_of([page])) for page in pages)
    wanted = header_packets(packets_of(pages))
    return next(count for count, packets in enumerate(ends, 1) if packets >= wanted)


def repaged(
    content: bytes, segments: int = 255, on_header_page: int = 0, packets_per_page: int | None = None, shift: int = 0
) -> list[Page]:
    """Return the packets on new pages, `shift` samples later.

    The last page of the header also holds `on_header_page` audio packets.
    """
    packets = with_granules(packets_of(pages_of(content)))
    headers = header_packets(packets)
    begin = headers + on_header_page
    audio = [dataclasses.replace(packet, granule=packet.granule + shift) for packet in packets[begin:]]
    size = packets_per_page or len(audio)
    groups = [audio[start : start + size] for start in range(0, len(audio), size)]
    return paged([packets[:1], packets[1:begin], *groups], segments=segments)


def cut(content: bytes, first: float = 0, last: float = 0, numbered: bool = True, ended: bool = True) -> bytes:
    """Remove the `first` and `last` audio pages, given as numbers or as shares of all audio pages.

    With `numbered`, the remaining pages are renumbered. With `ended`, the last page is marked as the end.
    """
    pages = pages_of(content)
    headers = header_pages(pages)
    first, last = (round(count * (len(pages) - headers)) if count < 1 else int(count) for count in (first, last))
    kept = [*pages[:headers], *pages[headers + first : len(pages) - last]]
    kept = renumbered(kept) if numbered else kept
    kept[-1] = dataclasses.replace(kept[-1], flags=kept[-1].flags & ~LAST | (LAST if ended else 0))
    return joined(kept)


def small_pages(content: bytes) -> bytes:
    """Return pages of which most contain the end of a packet from the page before."""
    return joined(repaged(content, segments=5))


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "as-encoded": lambda content: content,
    "a-packet-a-page": lambda content: joined(repaged(content, packets_per_page=1)),
    "three-packets-a-page": lambda content: joined(repaged(content, packets_per_page=3)),
    "full-pages": lambda content: joined(repaged(content)),
    "a-segment-a-page": lambda content: joined(repaged(content, segments=1)),
    "packets-across-pages": small_pages,
    "first-packet-on-header-page": lambda content: joined(repaged(content, on_header_page=1)),
    "first-packets-on-header-page": lambda content: joined(repaged(content, on_header_page=4, packets_per_page=8)),
    "begins-after-0": lambda content: joined(repaged(content, shift=480_000, packets_per_page=20)),
    "begins-past-32-bits": lambda content: joined(repaged(content, shift=1 << 33, packets_per_page=20)),
    "start-cut": lambda content: cut(content, first=1),
    "start-cut-page-numbers-kept": lambda content: cut(content, first=1, numbered=False),
    "start-cut-inside-a-packet": lambda content: cut(small_pages(content), first=0.3),
    "end-cut": lambda content: cut(content, last=1),
    "end-cut-no-end": lambda content: cut(content, last=1, ended=False),
    "end-cut-inside-a-packet": lambda content: cut(small_pages(content), last=0.3),
    "end-cut-inside-a-packet-no-end": lambda content: cut(small_pages(content), last=0.3, ended=False),
    "both-cut-no-end": lambda content: cut(small_pages(content), first=0.2, last=0.3, ended=False),
    "tag-after": lambda content: content + TAG,
    "id3v2-after": lambda content: content + ID3,
    "zeros-after": lambda content: content + bytes(200_000),
    "garbage-after": lambda content: content + bytes(range(1, 200)) * 400,
    "no-end-tag-after": lambda content: cut(content, last=1, ended=False) + TAG,
    "no-end-zeros-after": lambda content: cut(content, last=1, ended=False) + bytes(200_000),
    "garbage-between-pages": lambda content: b"\x01\x02\x03".join(map(bytes, pages_of(content))),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("encoder", LOSSY)
def test_samples_are_libsndfiles(encoder: str, edit: str) -> None:
    content = EDITS[edit](encoded(encoder))
    assert_same(decoded(content), by_libsndfile(content))


@pytest.mark.parametrize("shift", [-100, -3_000])
def test_vorbis_that_begins_before_0_is_libsndfiles(shift: int) -> None:
    content = joined(repaged(encoded("vorbis-libsndfile"), packets_per_page=20, shift=shift))
    assert_same(decoded(content), by_libsndfile(content))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, rare(2), 3, rare(5), rare(6), 8])
def test_vorbis_of_any_rate_and_channels_is_libsndfiles(rate: int, channels: int) -> None:
    samples = np.random.default_rng(rate).uniform(-0.5, 0.5, (12_345, channels)).astype(np.float32)
    content = sndfile_ogg(samples, rate)
    for file in (content, joined(repaged(content, on_header_page=1, segments=60))):
        assert_same(decoded(file), by_libsndfile(file))


@pytest.mark.parametrize("rate", [8_000, 12_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize("channels", [rare(1), 2, rare(6), 8])
def test_opus_of_any_rate_and_channels_is_libsndfiles(rate: int, channels: int) -> None:
    samples = np.random.default_rng(rate).uniform(-0.5, 0.5, (12_345, channels)).astype(np.float32)
    content = sndfile_ogg(samples, rate, "OPUS")
    for file in (content, joined(repaged(content, shift=96_000, packets_per_page=4))):
        assert_same(decoded(file), by_libsndfile(file))


@pytest.mark.parametrize("encoder", LOSSY)
def test_a_header_of_many_pages_is_read(encoder: str) -> None:
    """Check a comment packet with cover art, which is longer than a page."""
    packets = with_granules(packets_of(pages_of(encoded(encoder))))
    text = b"METADATA_BLOCK_PICTURE=" + b"A" * 200_000
    comments = bytes(4) + (1).to_bytes(4, "little") + len(text).to_bytes(4, "little") + text
    if packets[0].content.startswith(b"OpusHead"):
        packets[1] = Packet(b"OpusTags" + comments, 0)
    else:
        packets[1] = Packet(b"\x03vorbis" + comments + b"\x01", 0)
    headers = header_packets(packets)
    content = joined(paged([packets[:1], packets[1:headers], packets[headers:]], segments=200))
    assert_same(decoded(content), by_libsndfile(content))
    assert_same(decoded(content), decoded(encoded(encoder)))


@pytest.mark.parametrize("granule", [0, -1], ids=["timed", "untimed"])
@pytest.mark.parametrize("encoder", ANY)
def test_the_end_may_be_marked_by_a_page_of_its_own(encoder: str, granule: int) -> None:
    pages = without_end(pages_of(encoded(encoder)))
    last = pages[-1]
    end = Page(LAST, -1 if granule else last.granule, last.serial, last.number + 1, b"", b"")
    assert_same(decode_audio(joined([*pages, end]), rate_of(encoded(encoder))), decoded(encoded(encoder)))


@pytest.mark.parametrize("frames", [1, 100, 1_000, 5_000, 30_000])
@pytest.mark.parametrize("encoder", LOSSY)
def test_short_streams_are_libsndfiles(encoder: str, frames: int) -> None:
    content = encoded(encoder, 3_000, frames)
    assert_same(decoded(content), by_libsndfile(content))
    if encoder.startswith("vorbis"):  # libsndfile refuses the unmarked Opus streams
        unmarked = joined(without_end(pages_of(content)))
        assert_same(decoded(unmarked), by_libsndfile(unmarked))


def test_a_resampled_file_is_librosas(tmp_path: Path) -> None:
    (tmp_path / "song.ogg").write_bytes(EDITS["first-packet-on-header-page"](encoded("vorbis-libsndfile")))
    expected, _ = librosa.load(tmp_path / "song.ogg", sr=22_050, mono=True)
    np.testing.assert_array_equal(decode_audio(tmp_path / "song.ogg", 22_050), expected)
    np.testing.assert_array_equal(decode_audio((tmp_path / "song.ogg").read_bytes(), 22_050), expected)


def test_flac_is_what_was_encoded() -> None:
    samples, _ = soundfile.read(LOOPS / "loop_mika.flac", frames=140_000, dtype="int16")
    expected = samples.mean(axis=1, dtype=np.float64) / 32_768
    np.testing.assert_allclose(decoded(encoded("flac-ffmpeg")), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("frames", [2_000, 140_000])
@pytest.mark.parametrize("encoder", ["opus-libsndfile", "opus-libsndfile-16k", "opus-ffmpeg", "flac-ffmpeg"])
def test_an_unmarked_last_page_is_read_as_a_marked_one(encoder: str, frames: int) -> None:
    content = encoded(encoder, 0, frames)
    unmarked = joined(without_end(pages_of(content)))
    np.testing.assert_array_equal(decode_audio(unmarked, rate_of(content)), decoded(content))


def test_opus_of_a_single_page_may_begin_after_0() -> None:
    """Check a single page without the end mark: libsndfile refuses the page with the mark."""
    content = joined(without_end(cut_to_packets(encoded("opus-libsndfile"), 20, shift=960_000)))
    assert_same(decoded(content), by_libsndfile(content))


def cut_to_packets(content: bytes, count: int, shift: int) -> list[Page]:
    packets = with_granules(packets_of(pages_of(content)))
    audio = [dataclasses.replace(packet, granule=packet.granule + shift) for packet in packets[2 : 2 + count]]
    return paged([packets[:1], packets[1:2], audio])


@pytest.mark.parametrize("encoder", ANY)
def test_a_stopped_recording_holds_the_start_of_the_whole_one(encoder: str) -> None:
    whole, part = decoded(encoded(encoder)), decoded(cut(encoded(encoder), last=1, ended=False))
    assert 0.3 * len(whole) < len(part) < len(whole)
    np.testing.assert_array_equal(part, whole[: len(part)])


@pytest.mark.parametrize("missing", [1, 100, "half", "header", "lacing", "letters"])
@pytest.mark.parametrize("encoder", ANY)
def test_a_file_that_ends_inside_a_page_is_truncated(encoder: str, missing: int | str) -> None:
    content = encoded(encoder)
    page = len(bytes(pages_of(content)[-1]))
    left = {"half": page // 2, "header": 10, "lacing": 30, "letters": 3}
    size = missing if isinstance(missing, int) else page - left[missing]
    for chain in (content, content + content):
        with pytest.raises(AudioDecodeError, match="truncated: ends inside an Ogg page"):
            decode_audio(chain[:-size], rate_of(content))


@pytest.mark.parametrize("encoder", ANY)
@pytest.mark.parametrize("pages", [1, 2])
def test_a_file_that_ends_before_its_audio_is_truncated(encoder: str, pages: int) -> None:
    content = joined(pages_of(encoded(encoder))[:pages])
    with pytest.raises(AudioDecodeError, match="truncated"):
        decode_audio(content, 44_100)


def with_serial(content: bytes, serial: int) -> bytes:
    return joined(dataclasses.replace(page, serial=serial) for page in pages_of(content))


@pytest.mark.parametrize(
    "encoders",
    [
        ("vorbis-libsndfile", "vorbis-libsndfile"),
        ("vorbis-ffmpeg", "vorbis-libsndfile", "vorbis-ffmpeg"),
        ("opus-libsndfile", "opus-ffmpeg", "opus-libsndfile"),
        ("flac-ffmpeg", "flac-ffmpeg"),
        ("vorbis-libsndfile", "flac-ffmpeg", "vorbis-ffmpeg"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("serials", [(1, 1, 1), (1, 2, 1), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("between", [b"", rare(TAG + bytes(70_000))], ids=["", "tag"])
def test_a_chain_is_its_links(encoders: Sequence[str], serials: Sequence[int], between: bytes) -> None:
    contents = [encoded(encoder, 7_000 * place, 60_000) for place, encoder in enumerate(encoders)]
    links = [with_serial(content, serial) for content, serial in zip(contents, serials, strict=False)]
    samples = decoded(between.join(links))
    expected = [by_libsndfile(link) if link[28:33] != b"\x7fFLAC" else decoded(link) for link in links]
    assert_same(samples, np.concatenate(expected))


@pytest.mark.parametrize("encoder", LOSSY)
def test_links_may_begin_and_end_anywhere(encoder: str) -> None:
    content = encoded(encoder)
    links = [cut(content, last=1, ended=False), cut(content, first=1)]
    links.append(EDITS["first-packet-on-header-page"](content))
    links.append(cut(content, first=1, last=1, ended=False))
    assert_same(decoded(b"".join(links)), np.concatenate([by_libsndfile(link) for link in links]))


def test_links_may_have_other_channels() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, 6)).astype(np.float32)
    links = [sndfile_ogg(noise[:, :channels], 44_100) for channels in (2, 1, 6)]
    assert_same(decoded(b"".join(links)), np.concatenate([by_libsndfile(link) for link in links]))


def test_a_chain_of_two_rates_names_both() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, 2)).astype(np.float32)
    with pytest.raises(AudioDecodeError, match="44100 and 22050 Hz"):
        decode_audio(sndfile_ogg(noise, 44_100) + sndfile_ogg(noise, 22_050), 44_100)


def test_a_link_of_a_header_alone_holds_nothing() -> None:
    content = encoded("vorbis-libsndfile")
    pages = pages_of(content)
    header = pages[: header_pages(pages)]
    header[-1] = dataclasses.replace(header[-1], flags=header[-1].flags | LAST)
    np.testing.assert_array_equal(decode_audio(joined(header) + content + joined(header), 44_100), decoded(content))
    with pytest.raises(AudioDecodeError, match="no samples"):
        decode_audio(joined(header), 44_100)


def test_audio_that_shares_the_header_page_is_named() -> None:
    packets = with_granules(packets_of(pages_of(encoded("vorbis-libsndfile"))))[:8]
    content = joined(paged([packets[:1], packets[1:]]))
    with pytest.raises(AudioDecodeError, match="on a page of the header"):
        decode_audio(content, 44_100)


def other_stream(head: bytes, pages: int, serial: int = 77) -> list[Page]:
    """Return a stream without audio."""
    packets = [Packet(head, 0), *(Packet(bytes([number % 256]) * 700, number) for number in range(pages - 1))]
    return paged([[packet] for packet in packets], serial)


def multiplexed(*streams: Sequence[Page]) -> bytes:
    """Return the first pages of all streams, followed by the other pages in turn."""
    rest = itertools.chain.from_iterable(itertools.zip_longest(*(stream[1:] for stream in streams)))
    return joined([*(stream[0] for stream in streams), *(page for page in rest if page is not None)])


@pytest.mark.parametrize("place", [0, 1], ids=["before", "after"])
@pytest.mark.parametrize(
    ("head", "pages"),
    [(b"fishead\0" + bytes(56), 1), (b"\x80theora\x03\x02\x01" + bytes(32), 150)],
    ids=["skeleton", "theora"],
)
@pytest.mark.parametrize("encoder", LOSSY)
def test_other_streams_beside_the_audio_do_no_harm(encoder: str, head: bytes, pages: int, place: int) -> None:
    audio = pages_of(encoded(encoder))
    streams = [audio, audio]
    streams[place] = audio
    streams[1 - place] = other_stream(head, pages)
    content = multiplexed(*streams)
    assert_same(decode_audio(content, rate_of(encoded(encoder))), by_libsndfile(joined(audio)))
    unmarked = multiplexed(*map(without_end, streams))
    assert_same(decode_audio(unmarked, rate_of(joined(audio))), decoded(joined(audio)))


def test_the_first_of_two_audio_streams_is_read() -> None:
    first, second = encoded("vorbis-libsndfile"), with_serial(encoded("vorbis-ffmpeg"), 5)
    assert_same(decode_audio(multiplexed(pages_of(first), pages_of(second)), 44_100), by_libsndfile(first))


def test_a_chain_of_multiplexed_links_is_read_whole() -> None:
    audio = pages_of(encoded("vorbis-libsndfile"))
    link = multiplexed(other_stream(b"fishead\0" + bytes(56), 40), audio)
    assert_same(decode_audio(link + link, 44_100), np.tile(by_libsndfile(joined(audio)), 2))


def test_streams_without_audio_are_named() -> None:
    content = multiplexed(other_stream(b"\x80theora\x03\x02\x01" + bytes(32), 10))
    for chain in (content, encoded("vorbis-libsndfile") + content):
        with pytest.raises(AudioDecodeError, match="no Vorbis, Opus, FLAC or Speex"):
            decode_audio(chain, 44_100)
    with pytest.raises(AudioDecodeError, match="more than 64 Ogg streams"):
        decode_audio(joined(Page(FIRST, 0, serial, 0, b"\x08", b"fishead\0") for serial in range(100)), 44_100)


@pytest.mark.parametrize("encoder", ANY)
def test_a_tag_in_front_does_no_harm(encoder: str) -> None:
    content = encoded(encoder)
    for front in (ID3, ID3 + ID3, b"ID3\x04\0\x10" + ID3[6:] + b"3DI\x04\0\x10" + ID3[6:10]):
        np.testing.assert_array_equal(decode_audio(front + content, rate_of(content)), decoded(content))


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("encoder", ANY)
def test_a_damaged_page_is_corrupt(encoder: str) -> None:
    content = encoded(encoder)
    pages = list(map(bytes, pages_of(content)))
    for count in range(len(pages)):
        start = sum(map(len, pages[:count]))
        for at in (start + 5, start + len(pages[count]) - 1):
            for chain in (content, content + content):
                with pytest.raises(AudioDecodeError, match=r"corrupt|truncated"):
                    decode_audio(damaged(chain, len(chain) - len(content) + at), rate_of(content))


@pytest.mark.parametrize("encoder", ANY)
def test_a_missing_page_is_corrupt(encoder: str) -> None:
    content = encoded(encoder)
    pages = pages_of(content)
    headers = header_pages(pages)
    for missing in (0, 1, *range(headers + 1, len(pages) - 1)):
        kept = joined(page for number, page in enumerate(pages) if number != missing)
        for chain in (kept, content + kept):
            with pytest.raises(AudioDecodeError, match="corrupt"):
                decode_audio(chain, rate_of(content))


def test_what_may_be_lost_pages_is_corrupt() -> None:
    content = encoded("vorbis-libsndfile")
    unmarked = cut(content, last=1, ended=False)
    for garbage in (bytes(range(1, 200)) * 50, bytes(5_000) + b"garbage"):
        with pytest.raises(AudioDecodeError, match="no end, and bytes that are not Ogg"):
            decode_audio(unmarked + garbage, 44_100)
        with pytest.raises(AudioDecodeError, match="no end, and bytes that are not Ogg"):
            decode_audio(unmarked + garbage + with_serial(content, 9), 44_100)
    pages = pages_of(content)
    early = [*pages[:4], dataclasses.replace(pages[4], flags=LAST), *pages[5:]]
    with pytest.raises(AudioDecodeError, match="pages follow the end"):
        decode_audio(joined(early), 44_100)
    with pytest.raises(AudioDecodeError, match="no granule position"):
        decode_audio(joined([*pages[:-1], dataclasses.replace(pages[-1], granule=-1)]), 44_100)


def test_flac_that_holds_less_than_it_states_is_truncated() -> None:
    content = encoded("flac-ffmpeg")
    first, *others = pages_of(content)
    stated = (int.from_bytes(first.body[30:35], "big") >> 36 << 36 | 140_000).to_bytes(5, "big")
    pages = [dataclasses.replace(first, body=first.body[:30] + stated + first.body[35:]), *others]
    np.testing.assert_array_equal(decoded(joined(pages)), decoded(content))
    with pytest.raises(AudioDecodeError, match="truncated: holds"):
        decoded(joined(pages[:-2]))
