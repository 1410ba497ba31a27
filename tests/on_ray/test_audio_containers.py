"""Tar archives and Parquet files give the same tracks as a folder and report what they leave out."""

import io
import math
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, Dataset
from datasets.table import embed_table_storage

from audiodiff_core.audio import AudioDecodeError, decode_audio
from audiodiff_platform.audio_files import AudioItem, Inputs, items, parquet_rows
from audiodiff_platform.storage.commits import file_sha256

Member = tuple[str, bytes | str, bytes]
RATE = 22_050


@pytest.fixture
def corpus(few_loops: Path, tmp_path: Path) -> Path:
    """A folder of five tracks, two of them hard links and one a symbolic link, and of other files."""
    folder = tmp_path / "corpus"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "b.flac").write_bytes((few_loops / "loop_tabla.flac").read_bytes())
    (folder / "sub" / "deep" / "A B.FLAC").write_bytes((few_loops / "loop_mika.flac").read_bytes())
    (folder / "sub" / "...and one more.flac").write_bytes((few_loops / "bass_hit_c.flac").read_bytes())
    os.link(folder / "b.flac", folder / "sub" / "hard.flac")
    (folder / "sub" / "soft.flac").symlink_to("../b.flac")
    for name in ("._b.flac", "__MACOSX/._b.flac", "__MACOSX/b.flac", "sub/.stversions/b.flac", "@eaDir/b.flac"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no music")
    (folder / "notes.md").write_text("")
    return folder


def read(path: Path, scratch: Path) -> tuple[dict[str, str], Counter[str]]:
    """Return the digest of each item by its name without the container, and the skipped counts."""
    inputs = Inputs(str(path))
    skipped: Counter[str] = Counter()
    digests = {}
    for source in inputs.sources():
        for item in items(source, inputs.fetch(source, scratch), scratch, skipped):
            name = item.name.removeprefix(f"{source.uri}/")
            assert name not in digests
            digests[name] = file_sha256(item.local)
    return digests, skipped + inputs.skipped


def pack(file: Path, members: Iterable[Member]) -> Path:
    """Write a tar of members (name, content or link target, type)."""
    with tarfile.open(file, "w") as archive:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if isinstance(content, str):
                member.linkname = content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file


def listed(file: Path, scratch: Path) -> tuple[dict[str, bytes | str], Counter[str]]:
    """Return each member's content, or the reason why it has none, and the skipped counts."""
    inputs = Inputs(str(file))
    (source,) = inputs.sources()
    skipped: Counter[str] = Counter()
    contents: dict[str, bytes | str] = {}
    for item in items(source, inputs.fetch(source, scratch), scratch, skipped):
        name = item.name.removeprefix(f"{source.uri}/")
        assert name not in contents
        contents[name] = item.reason or item.local.read_bytes()
    return contents, skipped


def as_tar(corpus: Path, target: Path, prefix: str = "") -> Path:
    with tarfile.open(target, "w") as archive:
        archive.add(corpus, prefix or ".", recursive=True)
    return target


def test_a_corpus_has_the_same_tracks_as_folder_tar_list_and_parquet(corpus: Path, tmp_path: Path) -> None:
    expected, passed_over = read(corpus, tmp_path)
    assert len(expected) == 5
    assert passed_over[".md"] == 1
    tar, tar_passed_over = read(as_tar(corpus, tmp_path / "corpus.tar"), tmp_path)
    assert tar == expected
    assert tar_passed_over == {"hidden files": 5, ".md": 1}
    files = sorted(str(file.relative_to(corpus)) for file in corpus.rglob("*") if file.is_file())
    (corpus / "list.txt").write_text("\n".join(f"./{name}" for name in files))
    from_list, list_passed_over = read(corpus / "list.txt", tmp_path)
    assert from_list == expected
    assert list_passed_over == tar_passed_over
    audio = [{"bytes": (corpus / name).read_bytes(), "path": name} for name in files if name.lower().endswith(".flac")]
    Dataset.from_dict({"audio": audio}).cast_column("audio", Audio(decode=False)).to_parquet(
        tmp_path / "corpus.parquet"
    )
    from_parquet, parquet_passed_over = read(tmp_path / "corpus.parquet", tmp_path)
    assert sorted(from_parquet.values()) == sorted(expected.values())
    assert parquet_passed_over == {"hidden files": 5}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_members_are_those_of_files(tmp_path: Path, tar_format: int) -> None:
    names = {"./a.wav": "a.wav", "/b.wav": "b.wav", ".//c/./d.wav": "c/d.wav", "../e.wav": "../e.wav"}
    if tar_format != tarfile.USTAR_FORMAT:
        names |= {f"{'x' * 200}/{'ü' * 100}.wav": f"{'x' * 200}/{'ü' * 100}.wav"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name.encode())
            archive.addfile(member, io.BytesIO(name.encode()))
    before = sorted(tmp_path.parent.iterdir())
    contents, skipped = listed(tmp_path / "a.tar", tmp_path)
    assert contents == {short: name.encode() for name, short in names.items()}
    assert not skipped
    assert sorted(tmp_path.parent.iterdir()) == before


def test_links_through_linked_folders_have_the_content_of_their_target(tmp_path: Path) -> None:
    members: list[Member] = [
        ("via.wav", "dl/a.wav", tarfile.SYMTYPE),
        ("dl", "d", tarfile.SYMTYPE),
        ("d/a.wav", b"a", tarfile.REGTYPE),
        ("d/e/b.wav", b"b", tarfile.REGTYPE),
        ("x/first", "../y/second", tarfile.SYMTYPE),
        ("y/second", "../d/e", tarfile.SYMTYPE),
        ("x/two.wav", "first/b.wav", tarfile.SYMTYPE),
        ("up.wav", "x/first/../a.wav", tarfile.SYMTYPE),
        ("hard.wav", "dl/a.wav", tarfile.LNKTYPE),
        ("d/link.wav", "e/b.wav", tarfile.SYMTYPE),
        ("over.wav", "dl/link.wav", tarfile.SYMTYPE),
        ("self", "self/self", tarfile.SYMTYPE),
        ("self.wav", "self/a.wav", tarfile.SYMTYPE),
        ("here", ".", tarfile.SYMTYPE),
        ("often.wav", "here/" * 50 + "d/a.wav", tarfile.SYMTYPE),
        ("long.wav", "here/" * 2_000 + "d/a.wav", tarfile.SYMTYPE),
        ("root.wav", "/d/a.wav", tarfile.SYMTYPE),
    ]
    contents, skipped = listed(pack(tmp_path / "a.tar", members), tmp_path)
    links = {"via.wav": b"a", "x/two.wav": b"b", "up.wav": b"a", "hard.wav": b"a", "d/link.wav": b"b", "over.wav": b"b"}
    assert contents == {"d/a.wav": b"a", "d/e/b.wav": b"b", **links}
    assert skipped["dangling link"] == 4
    (tmp_path / "out").mkdir()
    with tarfile.open(tmp_path / "a.tar") as archive:
        for member in archive:
            if member.name not in {"root.wav", "long.wav"}:
                archive.extract(member, tmp_path / "out", filter="fully_trusted")
    for name, content in links.items():
        assert (tmp_path / "out" / name).read_bytes() == content


def test_links_have_the_content_of_their_target(tmp_path: Path) -> None:
    members: list[Member] = [
        ("early.wav", "late.wav", tarfile.SYMTYPE),
        ("a/b.wav", b"b", tarfile.REGTYPE),
        ("hard.wav", "./a/b.wav", tarfile.LNKTYPE),
        ("a/soft.wav", "b.wav", tarfile.SYMTYPE),
        ("c/soft.wav", "../a/./b.wav", tarfile.SYMTYPE),
        ("chain.wav", "c/soft.wav", tarfile.SYMTYPE),
        (".store/0a1b", b"stored", tarfile.REGTYPE),
        ("stored.wav", ".store/0a1b", tarfile.SYMTYPE),
        ("._hard.wav", "a/b.wav", tarfile.LNKTYPE),
        ("text.txt", "a/b.wav", tarfile.LNKTYPE),
        ("late.wav", b"late", tarfile.REGTYPE),
        ("a.folder", b"", tarfile.DIRTYPE),
    ]
    contents, skipped = listed(pack(tmp_path / "a.tar", members), tmp_path)
    assert contents == {
        "a/b.wav": b"b",
        "hard.wav": b"b",
        "a/soft.wav": b"b",
        "c/soft.wav": b"b",
        "chain.wav": b"b",
        "stored.wav": b"stored",
        "late.wav": b"late",
        "early.wav": b"late",
    }
    assert skipped == {"hidden files": 2, ".txt": 1}


def test_members_that_hold_no_audio_are_counted_or_named(tmp_path: Path) -> None:
    members: list[Member] = [
        ("a.wav", b"a", tarfile.REGTYPE),
        ("gone.wav", "absent.wav", tarfile.LNKTYPE),
        ("dangling.wav", "../../absent.wav", tarfile.SYMTYPE),
        ("absolute.wav", "/etc/hostname", tarfile.SYMTYPE),
        ("cycle.wav", "circle.wav", tarfile.SYMTYPE),
        ("circle.wav", "cycle.wav", tarfile.SYMTYPE),
        ("pipe.wav", b"", tarfile.FIFOTYPE),
        ("device.wav", b"", tarfile.CHRTYPE),
        ("song.tar.GZ", b"", tarfile.REGTYPE),
        ("README", b"", tarfile.REGTYPE),
        ("1. Prelude in C", b"", tarfile.REGTYPE),
    ]
    contents, skipped = listed(pack(tmp_path / "a.tar", members), tmp_path)
    assert contents == {"a.wav": b"a", "gone.wav": "hard link to absent.wav, which is not in the archive"}
    assert skipped == {"dangling link": 4, "special file": 2, ".tar.gz": 1, "none": 2}


def test_a_sparse_member_is_named(tmp_path: Path) -> None:
    header = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "holes.wav",
        "GNU.sparse.realsize": str(1 << 50),
    }
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, headers in (("GNUSparseFile.0/holes.wav", header), ("b.wav", {})):
            member = tarfile.TarInfo(name)
            member.pax_headers, content = headers, b"1\n0\n1\n".ljust(512, b"\0") + b"x"
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    contents, _ = listed(tmp_path / "a.tar", tmp_path)
    assert contents["holes.wav"] == "sparse members are not supported: pack the file without --sparse"
    assert "b.wav" in contents


def test_of_members_with_one_name_the_last_counts(tmp_path: Path) -> None:
    members: list[Member] = [
        ("a.wav", b"first", tarfile.REGTYPE),
        ("b.wav", "a.wav", tarfile.LNKTYPE),
        ("c.wav", "a.wav", tarfile.SYMTYPE),
        ("d.wav", b"a file once", tarfile.REGTYPE),
        ("e.wav", "d.wav", tarfile.SYMTYPE),
        ("./a.wav", b"second", tarfile.REGTYPE),
        ("d.wav", "a.wav", tarfile.SYMTYPE),
        ("e.wav", b"a link once", tarfile.REGTYPE),
    ]
    contents, skipped = listed(pack(tmp_path / "a.tar", members), tmp_path)
    assert contents == {
        "a.wav": b"second",
        "b.wav": b"first",
        "c.wav": b"second",
        "d.wav": b"second",
        "e.wav": b"a link once",
    }
    assert skipped == {"replaced in its archive": 3}


def test_archives_joined_by_cat_are_read_to_the_end(tmp_path: Path) -> None:
    first = pack(tmp_path / "1.tar", [("a.wav", b"1", tarfile.REGTYPE), ("b.wav", b"b", tarfile.REGTYPE)])
    second = pack(tmp_path / "2.tar", [("a.wav", b"2", tarfile.REGTYPE), ("c.wav", "b.wav", tarfile.LNKTYPE)])
    (tmp_path / "all.tar").write_bytes(first.read_bytes() + second.read_bytes())
    contents, skipped = listed(tmp_path / "all.tar", tmp_path)
    assert contents == {"a.wav": b"2", "b.wav": b"b", "c.wav": b"b"}
    assert skipped == {"replaced in its archive": 1}


def _damaged_header(content: bytes) -> bytes:
    return content[:1_024] + b"\xff" * 512 + content[1_536:]


def _pax(value: bytes, count: int = 1, kind: bytes = tarfile.XHDTYPE) -> Callable[[bytes], bytes]:
    """Return a function that inserts extended headers before the second member."""

    def changed(content: bytes) -> bytes:
        header = tarfile.TarInfo("pax")
        header.type, header.size = kind, len(value)
        block = header.tobuf() + value.ljust(-len(value) % 512 + len(value), b"\0")
        return content[:1_024] + block * count + content[1_024:]

    return changed


def _size(size: int) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        header = tarfile.TarInfo("b.wav")
        header.size = size
        return content[:1_024] + header.tobuf(tarfile.GNU_FORMAT) + content[1_536:]

    return changed


@pytest.mark.parametrize(
    "damage",
    [
        _damaged_header,
        _size(1 << 40),
        _size(-512),
        _size(-4_096),
        _size(1 << 70),
        _pax(b"17 size=-1000000\n"),
        _pax(b"17 size=10000000\n"),
        _pax(b"", count=3_000),
        _pax(b"x" * (1 << 20) + b"\n", kind=tarfile.GNUTYPE_LONGNAME),
        _pax(b"25 GNU.sparse.map=1,x,3\n"),
        lambda content: content[:2_048] + b"no header".ljust(512, b"\0"),
        lambda content: content + b"PK\3\4" * 100,
    ],
)
def test_damaged_archives_give_what_precedes_the_damage_and_a_reason(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = pack(tmp_path / "a.tar", [("a.wav", b"a", tarfile.REGTYPE), ("b.wav", b"b", tarfile.REGTYPE)])
    file.write_bytes(damage(file.read_bytes()))
    inputs = Inputs(str(file))
    (source,) = inputs.sources()
    names: list[str] = []
    with pytest.raises(AudioDecodeError, match="damaged archive, remaining members skipped"):
        names.extend(item.name for item in items(source, file, tmp_path))
    assert names[:1] == ["a.tar/a.wav"]


def parquet(file: Path, column: Any, kind: pa.DataType | None = None, **options: Any) -> Path:
    pq.write_table(pa.table({"audio": pa.array(column, kind)}), file, **options)
    return file


def rows(file: Path, scratch: Path) -> list[AudioItem]:
    inputs = Inputs(str(file))
    (source,) = inputs.sources()
    return list(items(source, inputs.fetch(source, scratch), scratch))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([{"bytes": None, "path": "a.wav"}] * 3, None),
        ([{"bytes": None, "path": "a.wav"}] * 3, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        ([{"path": "a.wav"}] * 3, None),
        ([None] * 3, pa.binary()),
        ([None] * 3, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        ([None] * 3, pa.struct({"array": pa.list_(pa.float32()), "sampling_rate": pa.int32()})),
    ],
)
@pytest.mark.parametrize("place", ["file", "folder", "list"])
def test_parquet_without_embedded_audio_is_refused(tmp_path: Path, column: Any, kind: Any, place: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if kind is None and column[0].get("bytes", 0) is None:
        kind = pa.struct({"path": pa.string(), "bytes": pa.large_binary()})
    parquet(folder / "train.parquet", column, kind, row_group_size=2)
    (folder / "list.txt").write_text("train.parquet\n")
    uri = {"file": folder / "train.parquet", "folder": folder, "list": folder / "list.txt"}[place]
    with pytest.raises(
        ValueError,
        match=r"audio is not embedded: 3 of 3 checked rows of train\.parquet have only a path: "
        r"rewrite .*embed_table_storage",
    ):
        list(Inputs(str(uri)).sources())


def test_parquet_without_audio_is_refused_after_a_bounded_number_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "MAX_EMPTY_ROWS_CHECKED", 200)
    parquet(tmp_path / "train.parquet", [{"path": "a.wav"}] * 300)
    with pytest.raises(ValueError, match=r"audio is not embedded: 200 of 200 checked rows of train\.parquet"):
        list(Inputs(str(tmp_path)).sources())


def test_the_advice_on_embedding_works(few_loops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Dataset.from_dict({"audio": [str(few_loops / "loop_mika.flac")] * 2}).cast_column("audio", Audio())
    dataset.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="audio is not embedded: 2 of 2 checked rows"):
        list(Inputs(str(tmp_path / "train.parquet")).sources())
    embedded = dataset.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
    embedded.to_parquet(tmp_path / "train.parquet")
    (first, _) = rows(tmp_path / "train.parquet", tmp_path)
    assert first.local.read_bytes() == (few_loops / "loop_mika.flac").read_bytes()


def test_rows_without_audio_among_others_are_reported_once_and_have_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = [{"bytes": b"RIFF", "path": "a.wav"}, {"bytes": None, "path": "b.wav"}, None, {"bytes": b"", "path": None}]
    parquet(tmp_path / "train.parquet", column)
    audio_items = rows(tmp_path / "train.parquet", tmp_path)
    assert capsys.readouterr().err.count("audio is not embedded: 2 of 4 checked rows of train.parquet") == 1
    assert [(item.name, item.reason) for item in audio_items] == [
        ("train.parquet/0-a.wav", ""),
        ("train.parquet/1-b.wav", "row has a path but no audio: embed the files in the Parquet file"),
        ("train.parquet/2", "row has no audio"),
        ("train.parquet/3", ""),
    ]


def test_parquet_whose_audio_begins_late_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    column = [{"bytes": None, "path": "a.wav"}] * 3_000 + [{"bytes": b"RIFF", "path": "b.wav"}]
    parquet(tmp_path / "train.parquet", column, row_group_size=1_000)
    assert len(rows(tmp_path / "train.parquet", tmp_path)) == 3_001
    assert "3,000 of 3,001 checked rows" in capsys.readouterr().err


def test_parquet_with_much_audio_is_checked_at_its_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = [{"bytes": None, "path": "a.wav"}, *[{"bytes": bytes(1 << 19), "path": "b.wav"}] * 10]
    parquet(tmp_path / "train.parquet", column)
    assert len(rows(tmp_path / "train.parquet", tmp_path)) == 11
    assert "1 of 4 checked rows" in capsys.readouterr().err


def test_parquet_without_audio_beside_other_audio_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet(tmp_path / "a.parquet", [{"bytes": None, "path": "a.wav"}])
    parquet(tmp_path / "b.parquet", [{"bytes": None, "path": "a.wav"}])
    (tmp_path / "c.wav").write_bytes(b"")
    assert {source.uri for source in Inputs(str(tmp_path)).sources()} == {"a.parquet", "b.parquet", "c.wav"}
    assert (
        "warning: audio is not embedded: 1 of 1 checked rows of a.parquet have only a path (also rows of 1 other files)"
        in capsys.readouterr().err
    )


SAMPLES = (0.25 * np.sin(np.arange(3_000) / 7)).astype(np.float32)
STEREO = np.stack([SAMPLES, SAMPLES / 2])


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (SAMPLES, pa.list_(pa.float32())),
        (SAMPLES.astype(np.float64), pa.list_(pa.float64())),
        (SAMPLES.astype(np.float16), pa.list_(pa.float16())),
        ((SAMPLES * 32_768).astype(np.int16), pa.large_list(pa.int16())),
        ((SAMPLES.astype(np.float64) * (1 << 31)).astype(np.int32), pa.list_(pa.int32(), len(SAMPLES))),
        (STEREO, pa.list_(pa.list_(pa.float32()))),
        (STEREO.T, pa.list_(pa.list_(pa.float64()))),
        (STEREO.T, pa.list_(pa.list_(pa.float32(), 2))),
    ],
)
def test_rows_of_samples_are_audio(tmp_path: Path, array: Any, kind: pa.DataType) -> None:
    row = {"path": "a.mp3", "array": array.tolist(), "sampling_rate": RATE, "text": "la"}
    fields = {"path": pa.string(), "array": kind, "sampling_rate": pa.int64(), "text": pa.string()}
    file = parquet(tmp_path / "train.parquet", [row, row], pa.struct(fields))
    expected = STEREO.mean(axis=0) if array.ndim == 2 else SAMPLES
    digests = set()
    for item in rows(file, tmp_path):
        np.testing.assert_allclose(
            decode_audio(item.local, RATE), expected, rtol=0, atol=1e-3 if array.dtype == np.float16 else 4e-5
        )
        digests.add(file_sha256(item.local))
    assert len(digests) == 1


def test_a_path_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    path = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9.wav"]).buffers())
    parquet(tmp_path / "train.parquet", pa.StructArray.from_arrays([pa.array([b"RIFF"]), path], ["bytes", "path"]))
    (item,) = rows(tmp_path / "train.parquet", tmp_path)
    assert item.name == "train.parquet/0-caf\\xe9.wav"


def test_a_dataset_of_decoded_samples_of_datasets_own_making(tmp_path: Path) -> None:
    rows_of_samples = [{"array": SAMPLES, "sampling_rate": RATE}, {"array": SAMPLES[:100], "sampling_rate": 16_000}]
    Dataset.from_dict({"text": ["a", "b"], "speech": rows_of_samples}).to_parquet(tmp_path / "train.parquet")
    first, second = rows(tmp_path / "train.parquet", tmp_path)
    assert soundfile.info(second.local).samplerate == 16_000
    assert first.name == "train.parquet/0"


@pytest.mark.parametrize(
    ("array", "kind", "rate", "reason"),
    [
        ([0.1], pa.list_(pa.float32()), None, "sample rate None Hz"),
        ([0.1], pa.list_(pa.float32()), 0, "sample rate 0 Hz: must be 1000 to 768000 Hz"),
        ([0.1], pa.list_(pa.float32()), -44_100, "sample rate -44100 Hz"),
        ([0.1], pa.list_(pa.float32()), 1 << 40, "sample rate 1099511627776 Hz"),
        ([], pa.list_(pa.float32()), RATE, "array has no samples"),
        ([], pa.list_(pa.list_(pa.float32())), RATE, "array has no samples"),
        ([[]], pa.list_(pa.list_(pa.float32())), RATE, "array has no samples"),
        ([0.1, None], pa.list_(pa.float32()), RATE, "array has missing samples"),
        ([[0.1, 0.2], [0.1]], pa.list_(pa.list_(pa.float32())), RATE, "array has channels of different lengths"),
        ([[0.1], None], pa.list_(pa.list_(pa.float32())), RATE, "array has channels of different lengths"),
        ([1, 2], pa.list_(pa.int64()), RATE, "array of type list<element: int64>"),
        (["a"], pa.list_(pa.string()), RATE, "array of type list<element: string>"),
        ([[[0.1]]], pa.list_(pa.list_(pa.list_(pa.float32()))), RATE, "array of type list"),
        (np.zeros((1_100, 1_100)).tolist(), pa.list_(pa.list_(pa.float32())), RATE, "array has 1100 channels"),
    ],
)
def test_rows_of_samples_that_are_no_audio_have_a_reason(
    tmp_path: Path, array: Any, kind: pa.DataType, rate: Any, reason: str
) -> None:
    column = [{"array": array, "sampling_rate": rate}, {"array": array, "sampling_rate": rate}]
    file = parquet(tmp_path / "train.parquet", column, pa.struct({"array": kind, "sampling_rate": pa.int64()}))
    for item in rows(file, tmp_path):
        assert item.reason.startswith(reason)


@pytest.mark.parametrize("rate", [8_000.0, math.nan, math.inf])
def test_rates_may_be_floats(tmp_path: Path, rate: float) -> None:
    column = [{"array": [0.1], "sampling_rate": rate}]
    (item,) = rows(parquet(tmp_path / "train.parquet", column), tmp_path)
    assert item.reason.startswith("" if rate == 8_000 else "sample rate")


def test_samples_that_a_small_file_states_by_the_million_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "MIN_GROUP_BYTES", 1 << 20)
    column = [{"array": np.zeros(1_000_000, np.float32), "sampling_rate": RATE}]
    file = parquet(tmp_path / "train.parquet", column)
    assert file.stat().st_size < 1 << 16
    with pytest.raises(AudioDecodeError, match=r"row group 0 declares 1,000,000 samples in"):
        rows(file, tmp_path)


@pytest.mark.parametrize("column", [bytes(4_000_000), {"bytes": bytes(4_000_000), "path": "a.wav"}])
def test_a_row_group_that_expands_to_far_more_than_it_stores_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: Any
) -> None:
    monkeypatch.setattr(parquet_rows, "MIN_GROUP_BYTES", 1 << 20)
    file = parquet(tmp_path / "train.parquet", [column], compression="zstd")
    assert file.stat().st_size < 1 << 13
    inputs = Inputs(str(file))
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    (source,) = inputs.sources()
    with pytest.raises(
        AudioDecodeError, match=r"row group 0 expands from [\d,]+ to 4,000,\d+ bytes: at most 1,048,576"
    ):
        list(items(source, file, tmp_path))


def test_damaged_parquet_in_a_folder_is_planned_to_be_quarantined(tmp_path: Path) -> None:
    parquet(tmp_path / "cut.parquet", [b"RIFF"])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-20])
    (tmp_path / "junk.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"\x20\0\0\0PAR1")
    inputs = Inputs(str(tmp_path))
    sources = list(inputs.sources())
    assert {source.uri for source in sources} == {"cut.parquet", "junk.parquet"}
    for source in sources:
        with pytest.raises(AudioDecodeError, match="damaged Parquet file, remaining rows skipped"):
            list(items(source, inputs.fetch(source, tmp_path), tmp_path))
