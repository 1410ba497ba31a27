"""Write hundreds of malformed audio files: python tests/malformed.py FOLDER

The files are made from an excerpt of a loop in every format that can be read. FOLDER/healthy holds the sources, and
FOLDER/malformed holds the malformed files. A file name states the damage: KIND_SOURCE_DETAIL.EXTENSION, where SOURCE is
the name of a healthy file. Each run writes the same files.
"""

import io
import sqlite3
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image

Samples = npt.NDArray[np.float32]
Files = dict[str, bytes]

RATE = 44_100
LIES_32 = {"0": 0, "1": 1, "odd": 101, "1e9": 10**9, "2g": 0x7FFFFFFF, "4g": 0xFFFFFFFF}
LIES_16 = {"0": 0, "1": 1, "1025": 1_025, "max": 0xFFFF}
MP4_BOXES = (
    b"moov",
    b"trak",
    b"mdia",
    b"minf",
    b"stbl",
    b"stsd",
    b"mp4a",
    b"esds",
    b"stts",
    b"stsc",
    b"stsz",
    b"stco",
    b"mdhd",
    b"hdlr",
    b"mdat",
    b"elst",
)


def healthy_files(loops: Path) -> Files:
    """Return names and contents of usable files of just over half a second, one for each format.

    More files have other channel counts and sample rates.
    """
    samples, _ = soundfile.read(loops / "loop_mika.flac", frames=24_000, dtype="float32")
    files = {
        "pcm16.wav": _sndfile(samples, "WAV", "PCM_16"),
        "pcm24.wav": _sndfile(samples, "WAV", "PCM_24"),
        "float.wav": _sndfile(samples, "WAV", "FLOAT"),
        "ulaw.wav": _sndfile(samples, "WAV", "ULAW"),
        "extensible.wav": _sndfile(samples, "WAVEX", "PCM_16"),
        "rf64.wav": _sndfile(samples, "RF64", "PCM_16"),
        "pcm16.aiff": _sndfile(samples, "AIFF", "PCM_16"),
        "stereo.flac": _sndfile(samples, "FLAC", "PCM_16"),
        "vorbis.ogg": _ogg(_sndfile(samples, "OGG", "VORBIS")),
        "opus.opus": _ogg(_sndfile(samples, "OGG", "OPUS", 48_000)),
        "stereo.mp3": _sndfile(samples, "MP3", "MPEG_LAYER_III"),
        "aac.m4a": aac(samples, "mp4"),
        "faststart.m4a": aac(samples, "mp4", {"movflags": "faststart"}),
        "fragments.m4a": aac(samples, "mp4", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "100000"}),
        "adts.aac": aac(samples, "adts"),
    }
    for channels in (1, 3, 4, 5, 6, 7, 8, 64):
        files[f"channels{channels}.wav"] = _sndfile(np.tile(samples[:2_000, :1], (1, channels)), "WAV", "PCM_16")
    for rate in (1_000, 11_127, 44_101, 192_000, 768_000):
        files[f"rate{rate}.wav"] = _sndfile(samples[: rate // 8], "WAV", "PCM_16", rate)
    return files


def malformed_files(loops: Path) -> Files:
    """Return names and contents of all malformed files."""
    healthy = {
        name: content for name, content in healthy_files(loops).items() if not name.startswith(("channels", "rate"))
    }
    files = {**_not_audio(), **_unusable_samples(), **_header_lies(healthy)}
    for name, content in healthy.items():
        for damage in (_flips, _cuts, _garbage, _wrong_extensions, _splices):
            files.update(damage(name, content, np.random.default_rng(zlib.crc32(f"{damage.__name__} {name}".encode()))))
    return files


def aac(samples: Samples, container_format: str, options: dict[str, str] | None = None) -> bytes:
    """Encode `samples` (n, 2) at 44.1 kHz as AAC."""
    with tempfile.TemporaryDirectory() as folder:  # FFmpeg opens the file twice for `faststart`
        file = Path(folder) / "aac"
        container: Any = av.open(str(file), "w", format=container_format, options=options or {})
        with container:
            track = container.add_stream("aac", rate=RATE, layout="stereo")
            for start in range(0, len(samples), 1_024):
                frame: Any = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(samples[start : start + 1_024].T), format="fltp", layout="stereo"
                )
                frame.sample_rate, frame.pts = RATE, start
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
        return file.read_bytes()


def _sndfile(samples: Samples, file_format: str, subtype: str, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=file_format, subtype=subtype)
    content = buffer.getvalue()
    peak = content.find(b"PEAK", 0, 256)
    return _put(content, peak + 12, bytes(4)) if peak > 0 else content  # bytes 12 to 15 are the time of writing


def _name(kind: str, source: str, detail: object, extension: str | None = None) -> str:
    stem, _, own = source.rpartition(".")
    return f"{kind}_{stem}-{own}_{detail}.{extension or own}"


def _put(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


# Damage that does not depend on the format


def _flips(name: str, content: bytes, rng: np.random.Generator) -> Files:
    """Flip bits in the first 256 bytes and in the whole file, up to a quarter as many bits as bytes."""
    files = {}
    for part, end, counts in (
        ("header", min(256, len(content)), (1, 1, 1, 1, 2, 4, 8, 16)),
        ("body", len(content), (1, 3, 10, 100, len(content) // 4)),
    ):
        for turn, count in enumerate(counts):
            damaged = np.frombuffer(content, np.uint8).copy()
            places = rng.integers(0, end, count)
            np.bitwise_xor.at(damaged, places, (1 << rng.integers(0, 8, count)).astype(np.uint8))
            files[_name("flip", name, f"{part}{turn}-{count}bits")] = damaged.tobytes()
    return files


def _cuts(name: str, content: bytes, rng: np.random.Generator) -> Files:
    """Truncate the file in the header and at shares of its size."""
    sizes = {f"{size}bytes": size for size in (1, 8, 13, 27, 44, 60)}
    sizes |= {f"{percent}percent": len(content) * percent // 100 for percent in (10, 33, 50, 75, 90)}
    return {_name("cut", name, detail): content[:size] for detail, size in sizes.items()}


def _garbage(name: str, content: bytes, rng: np.random.Generator) -> Files:
    """Put random bytes or zeros before, in and after the file, and omit, double or reverse parts."""
    middle, junk = len(content) // 2, rng.bytes(1_500)
    return {
        _name("garbage", name, detail): damaged
        for detail, damaged in {
            "before": junk + content,
            "after": content + junk,
            "tag-after": content + b"TAG" + bytes(125),
            "zeros-after": content + bytes(20_000),
            "inside": _put(content, middle, junk[: len(content) - middle]),
            "zeros-inside": _put(content, middle, bytes(min(1_500, len(content) - middle))),
            "inserted": content[:middle] + junk + content[middle:],
            "missing": content[:middle] + content[middle + 1_000 :],
            "doubled": content + content,
            "reversed": content[:64] + content[:63:-1],
        }.items()
    }


def _wrong_extensions(name: str, content: bytes, rng: np.random.Generator) -> Files:
    extensions = [
        extension
        for extension in ("wav", "flac", "ogg", "opus", "mp3", "m4a", "aac", "aiff", "raw")
        if not name.endswith(extension)
    ]
    return {
        _name("extension", name, "wrong", str(extension)): content
        for extension in rng.choice(extensions, 3, replace=False)
    }


def _splices(name: str, content: bytes, rng: np.random.Generator) -> Files:
    """Reorder, omit or repeat the parts of the file: chunks, boxes, pages or frames."""
    parts = _parts(name, content)
    files = {}
    for turn in range(5):
        order = rng.integers(0, len(parts), len(parts)) if turn % 2 else rng.permutation(len(parts))
        head = turn % 3  # number of parts that stay in front
        chosen = parts[:head] + [parts[place] for place in order]
        files[_name("splice", name, turn)] = b"".join(chosen)
    return files


def _parts(name: str, content: bytes) -> list[bytes]:
    marks = {"ogg": b"OggS", "opus": b"OggS", "flac": content[:0], "mp3": content[:2], "aac": content[:2]}.get(
        name.rpartition(".")[2]
    )
    if name.endswith(".m4a"):
        starts = sorted({at - 4 for box in (b"ftyp", *MP4_BOXES) for at in _places(content, box)})
    elif marks:
        starts = _places(content, marks)
    else:
        starts = [0, 4, 8, 12, 20, 36, 44, *range(60, len(content), 4_096)]
    return [content[start:end] for start, end in zip([0, *starts], [*starts, len(content)], strict=True) if start < end]


def _places(content: bytes, mark: bytes) -> list[int]:
    places, at = [], -1
    while (at := content.find(mark, at + 1)) >= 0:
        places.append(at)
    return places


# Header lies: each sets one field of a healthy file to a false value


def _header_lies(healthy: Files) -> Files:
    files: Files = {}
    for name, lies in (
        ("pcm16.wav", _wav_lies),
        ("pcm16.aiff", _aiff_lies),
        ("stereo.flac", _flac_lies),
        ("vorbis.ogg", _ogg_lies),
        ("opus.opus", _ogg_lies),
        ("stereo.mp3", _mp3_lies),
        ("faststart.m4a", _mp4_lies),
        ("fragments.m4a", _fragment_lies),
        ("adts.aac", _adts_lies),
    ):
        files.update({_name("lie", name, detail): content for detail, content in lies(healthy[name])})
    sound = healthy["pcm16.wav"][44:]
    files["lie_au_channels-1e9.wav"] = b".snd" + struct.pack(">5I", 24, len(sound), 3, RATE, 10**9) + sound
    description = struct.pack(">d4s5I", float(RATE), b"lpcm", 0, 4, 1, 10**9, 16)
    files["lie_caf_channels-1e9.wav"] = (
        b"caff\0\1\0\0desc"
        + struct.pack(">q", 32)
        + description
        + b"data"
        + struct.pack(">qI", len(sound) + 4, 0)
        + sound
    )
    return files


def _wav_lies(content: bytes) -> Iterator[tuple[str, bytes]]:
    for field, at in (("channels", 22), ("blockalign", 32), ("bits", 34), ("format", 20)):
        for lie, value in LIES_16.items():
            yield f"{field}-{lie}", _put(content, at, struct.pack("<H", value))
    for field, at in (("riffsize", 4), ("fmtsize", 16), ("rate", 24), ("datasize", 40)):
        for lie, value in LIES_32.items():
            yield f"{field}-{lie}", _put(content, at, struct.pack("<I", value))
    yield "pipe", _put(_put(content, 4, b"\xff" * 4), 40, b"\xff" * 4)
    yield "unfinished", _put(_put(content, 4, bytes(4)), 40, bytes(4))


def _aiff_lies(content: bytes) -> Iterator[tuple[str, bytes]]:
    comm, ssnd = content.index(b"COMM"), content.index(b"SSND")
    for field, at in (("channels", comm + 8), ("bits", comm + 14)):
        for lie, value in LIES_16.items():
            yield f"{field}-{lie}", _put(content, at, struct.pack(">H", value))
    for field, at in (
        ("formsize", 4),
        ("commsize", comm + 4),
        ("frames", comm + 10),
        ("datasize", ssnd + 4),
        ("offset", ssnd + 8),
        ("blocksize", ssnd + 12),
    ):
        for lie, value in LIES_32.items():
            yield f"{field}-{lie}", _put(content, at, struct.pack(">I", value))
    rates = {
        "0": bytes(10),
        "nan": b"\x7f\xff" + b"\xff" * 8,
        "inf": b"\x7f\xff\x80" + bytes(7),
        "negative": b"\xc0\x0e\xac\x44" + bytes(6),
    }
    for lie, extended in rates.items():
        yield f"rate-{lie}", _put(content, comm + 16, extended)


def _flac_lies(content: bytes) -> Iterator[tuple[str, bytes]]:
    for field, at, size in (
        ("minblock", 8, 2),
        ("maxblock", 10, 2),
        ("minframe", 12, 3),
        ("maxframe", 15, 3),
        ("blocklength", 5, 3),
    ):
        for lie, value in {"0": 0, "1": 1, "max": (1 << 8 * size) - 1}.items():
            yield f"{field}-{lie}", _put(content, at, value.to_bytes(size, "big"))
    fields = int.from_bytes(content[18:26], "big")
    for field, shift, bits in (("rate", 44, 20), ("channels", 41, 3), ("bits", 36, 5), ("frames", 0, 36)):
        for lie, value in {"0": 0, "1": 1, "max": (1 << bits) - 1}.items():
            changed = fields & ~(((1 << bits) - 1) << shift) | value << shift
            yield f"{field}-{lie}", _put(content, 18, changed.to_bytes(8, "big"))


def _ogg_lies(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield false fields with correct checksums, so that decoders read the fields."""
    pages = _places(content, b"OggS")
    last = pages[-1]
    values = {
        "0": bytes(8),
        "minus1": b"\xff" * 8,
        "max": b"\xff" * 7 + b"\x7f",
        "2to40": (1 << 40).to_bytes(8, "little"),
    }
    for lie, value in values.items():
        yield f"granule-{lie}", _ogg(_put(content, last + 6, value))
        yield f"granule-middle-{lie}", _ogg(_put(content, pages[-2] + 6, value))
    for field, at, size in (
        ("version", last + 4, 1),
        ("flags", last + 5, 1),
        ("sequence", last + 18, 4),
        ("segments", last + 26, 1),
        ("lacing", last + 27, 1),
    ):
        for lie, byte in {"0": 0, "max": 0xFF}.items():
            yield f"{field}-{lie}", _ogg(_put(content, at, bytes([byte]) * size))
    yield "no-end", _ogg(_put(content, last + 5, b"\0"))
    yield "other-serial", _ogg(content, serials={last: 7})
    packet = 28  # the first packet: the identification header
    # OpusHead: version, channels, pre-skip, rate, gain, family. Vorbis: version, channels, rate.
    for offset in range(7, 19):
        for lie, byte in {"0": 0, "max": 0xFF}.items():
            yield f"head{offset}-{lie}", _ogg(_put(content, packet + offset, bytes([byte])))
    yield "blocksizes", _ogg(_put(content, packet + 28, b"\xff"))


def _mp3_lies(content: bytes) -> Iterator[tuple[str, bytes]]:
    tag = max(content.find(b"Xing"), content.find(b"Info"))
    for field, at in (("flags", tag + 4), ("frames", tag + 8), ("bytes", tag + 12), ("delay", tag + 141)):
        for lie, value in LIES_32.items():
            yield f"{field}-{lie}", _put(content, at, struct.pack(">I", value))
    for size in (b"\0\0\0\0", b"\x7f\x7f\x7f\x7f", b"\xff\xff\xff\xff", b"\0\0\x10\0"):
        yield f"id3size-{size.hex()}", b"ID3\x04\0\0" + size + bytes(100) + content
    for at in (1, 2, 3):
        for byte in (0, 0xF0, 0xFF):
            yield f"sync{at}-{byte}", _put(content, at, bytes([byte]))


def _mp4_lies(content: bytes) -> Iterator[tuple[str, bytes]]:
    for box in MP4_BOXES:
        for at in _places(content, box)[:1]:
            label = box.decode()
            for lie, value in LIES_32.items():
                yield f"{label}size-{lie}", _put(content, at - 4, struct.pack(">I", value))
            yield f"{label}-renamed", _put(content, at, b"free")
    for box, offsets in {
        b"stsz": (12,),
        b"stts": (8, 12, 16),
        b"stsc": (8, 16),
        b"stco": (8, 12),
        b"mdhd": (16, 20),
    }.items():
        for offset in offsets:
            for lie, value in LIES_32.items():
                yield (
                    f"{box.decode()}{offset}-{lie}",
                    _put(content, content.index(box) + offset, struct.pack(">I", value)),
                )
    for count in (10**7, 5 * 10**7, 10**9):  # packets of one byte, in one chunk
        claim = _put(content, content.index(b"stsz") + 8, struct.pack(">2I", 1, count))
        claim = _put(claim, content.index(b"stsc") + 8, struct.pack(">3I", 1, 1, count))
        yield f"packets-{count}", _put(claim, content.index(b"stts") + 8, struct.pack(">2I", 1, count))
    mp4a = content.index(b"mp4a")
    for field, at in (("version", mp4a + 12), ("channels", mp4a + 20), ("bits", mp4a + 22), ("rate", mp4a + 28)):
        for lie, value in LIES_16.items():
            yield f"{field}-{lie}", _put(content, at, struct.pack(">H", value))


def _fragment_lies(content: bytes) -> Iterator[tuple[str, bytes]]:
    run = content.index(b"trun")
    for count in (0, 10**7, 5 * 10**7, 10**9):  # packets without their own size
        yield f"packets-{count}", _put(content, run + 4, struct.pack(">2I", 0, count))


def _adts_lies(content: bytes) -> Iterator[tuple[str, bytes]]:
    frames = _places(content, content[:2])
    for label, at in (("first", frames[0]), ("middle", frames[len(frames) // 2])):
        yield f"{label}-rate-reserved", _put(content, at + 2, bytes([content[at + 2] | 0x3C]))
        yield f"{label}-rate-other", _put(content, at + 2, bytes([content[at + 2] ^ 0x04]))
        yield f"{label}-channels-7", _put(content, at + 2, bytes([content[at + 2] | 1, content[at + 3] | 0xC0]))
        yield f"{label}-mono", _put(content, at + 3, bytes([content[at + 3] & 0x3F | 0x40]))
        yield f"{label}-length-0", _put(content, at + 3, bytes([content[at + 3] & 0xFC, 0, content[at + 5] & 0x1F]))
        yield f"{label}-length-max", _put(content, at + 3, bytes([content[at + 3] | 3, 0xFF, content[at + 5] | 0xE0]))


def _ogg(content: bytes, serials: dict[int, int] | None = None) -> bytes:
    """Return an Ogg file with the stream number 1 and correct checksums.

    `serials` maps the start of a page to another stream number.
    """
    places = _places(content, b"OggS")
    pages = []
    for start, end in zip(places, [*places[1:], len(content)], strict=True):
        page = bytearray(content[start:end])
        page[14:18] = (serials or {}).get(start, 1).to_bytes(4, "little")
        page[22:26] = bytes(4)
        page[22:26] = _ogg_crc(bytes(page)).to_bytes(4, "little")
        pages.append(bytes(page))
    return b"".join(pages)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value >> 31 else value << 1) & 0xFFFFFFFF
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def _ogg_crc(page: bytes) -> int:
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ _CRC_TABLE[value >> 24 ^ byte]
    return value


# Files that are not audio, and audio that cannot be used


def _not_audio() -> Files:
    rng = np.random.default_rng(0)
    archive, picture = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(zipfile.ZipInfo("song.txt"), "la la la " * 100)
    Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(picture, "PNG")
    database = sqlite3.connect(":memory:")
    database.execute("create table songs (title text)")
    contents: dict[str, bytes] = {
        "empty": b"",
        "newline": b"\n",
        "text": b"these are words, not samples\n" * 100,
        "json": b'{"audio": [0.1, 0.2, 0.3]}',
        "html": b"<!doctype html><html><body>404 Not Found</body></html>",
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile 'healthy_pcm16-wav_same.wav'\n",
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "zip": archive.getvalue(),
        "png": picture.getvalue(),
        "sqlite": database.serialize(),
        "elf": b"\x7fELF\2\1\1" + bytes(1_000),
        "zeros": bytes(50_000),
        "ones": b"\xff" * 50_000,
    }
    contents |= {f"random{size}": rng.bytes(size) for size in (1, 3, 100, 10_000, 100_000)}
    magics = (
        b"RIFF",
        b"RIFF\x24\0\0\0WAVE",
        b"FORM\0\0\0\x24AIFF",
        b"fLaC",
        b"OggS",
        b"ID3",
        b"\xff\xfb\x90\0",
        b"\0\0\0\x20ftypM4A ",
        b"\xff\xf1\x50\x80",
    )
    for magic in magics:
        contents[f"magic-{magic.hex()}"] = magic
        contents[f"magic-random-{magic.hex()}"] = magic + rng.bytes(3_000)
    extensions = ("wav", "mp3", "m4a", "ogg", "flac", "aac", "aiff", "opus")
    return {
        f"notaudio_{label}.{extensions[place % len(extensions)]}": content
        for place, (label, content) in enumerate(contents.items())
    }


def _unusable_samples() -> Files:
    """Return files of samples that are NaN, infinite, too large or zero, and files without samples."""
    files: Files = {}
    for label, value in {"nan": np.nan, "inf": np.inf, "minusinf": -np.inf}.items():
        for place in (0, 9_999, 19_999):
            samples = np.zeros((20_000, 2), np.float32)
            samples[place, place % 2] = value
            files[f"notfinite_{label}_at{place}.wav"] = _sndfile(samples, "WAV", "FLOAT")
        files[f"notfinite_{label}_all.wav"] = _sndfile(np.full((20_000, 2), value, np.float32), "WAV", "FLOAT")
        files[f"notfinite_{label}_double.aiff"] = _sndfile(np.full((20_000, 1), value, np.float32), "AIFF", "DOUBLE")
    files["notfinite_infminusinf_all.wav"] = _sndfile(
        np.tile(np.array([np.inf, -np.inf], np.float32), (20_000, 1)), "WAV", "FLOAT"
    )
    for label, value in {"1e11": 1e11, "1e30": -1e30}.items():
        files[f"toolarge_{label}_one.wav"] = _sndfile(
            np.full((20_000, 2), value, np.float32) * (np.arange(20_000) == 9_999)[:, None], "WAV", "FLOAT"
        )
    files["notfinite_sum_overflows.wav"] = _sndfile(np.full((20_000, 2), 3e38, np.float32), "WAV", "FLOAT")
    writers: dict[str, Callable[[Samples], bytes]] = {
        "wav": lambda samples: _sndfile(samples, "WAV", "PCM_16"),
        "aiff": lambda samples: _sndfile(samples, "AIFF", "PCM_16"),
        "flac": lambda samples: _sndfile(samples, "FLAC", "PCM_16"),
        "ogg": lambda samples: _ogg(_sndfile(samples, "OGG", "VORBIS")),
        "mp3": lambda samples: _sndfile(samples, "MP3", "MPEG_LAYER_III"),
        "m4a": lambda samples: aac(samples, "mp4"),
    }
    for extension, write in writers.items():
        files[f"silent_{extension}_zeros.{extension}"] = write(np.zeros((20_000, 2), np.float32))
        if extension != "m4a":  # FFmpeg writes no file without samples
            files[f"nosamples_{extension}_none.{extension}"] = write(np.zeros((0, 2), np.float32))
    return files


if __name__ == "__main__":
    import sys

    for folder, made in (("healthy", healthy_files), ("malformed", malformed_files)):
        target = Path(sys.argv[1]) / folder
        target.mkdir(parents=True)
        for file_name, file_content in made(Path(__file__).parent / "data" / "loops").items():
            (target / file_name).write_bytes(file_content)
