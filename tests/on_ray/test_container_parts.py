"""Large containers are planned, fetched and read in parts, without a change of their items."""

import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiodiff_platform.audio_files import ByteRange, Inputs, Source, in_parts, items, parts, source_sha256
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.commits import file_sha256
from audiodiff_platform.work.plan import append_plan, assign_shards, new_sources, read_shard
from audiodiff_platform.work.source_digests import record_digests
from tests.servers.stores import Store, Stores

SMALL: dict[str, Any] = {"resolution": "32", "hop_length": 1024, "num_workers": 1}
Found = list[tuple[str, str]]


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide containers of more than 20 kB into parts of 10 kB."""
    monkeypatch.setattr(parts, "MAX_UNDIVIDED_BYTES", 20_000)
    monkeypatch.setattr(parts, "PART_BYTES", 10_000)


def content(number: int) -> bytes:
    return bytes([number]) * (1_000 + 37 * number)


def packed(file: Path, tar_format: int = tarfile.PAX_FORMAT, more: Sequence[tarfile.TarInfo] = ()) -> Path:
    """Write a tar of 40 audio files, some with long names, among other members."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=tar_format) as archive:
        for number in range(40):
            long = "" if tar_format == tarfile.USTAR_FORMAT or number % 3 else f"{'x' * 120}/"
            for name in (f"{long}{number}.wav", f"{number}.txt"):
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(content(number))
                archive.addfile(member, io.BytesIO(content(number)))
        for member in more:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return file


def rows(file: Path) -> Path:
    """Write Parquet of 40 audio files in row groups of three rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    column = [
        {"bytes": os.urandom(2_000), "path": f"{number}.wav" if number % 5 else f".{number}.wav"}
        for number in range(40)
    ]
    pq.write_table(pa.table({"text": ["la"] * 40, "audio": column}), file, row_group_size=3)
    return file


def read(inputs: Inputs, sources: Sequence[Source], scratch: Path) -> tuple[Found, Counter[str]]:
    """Return name and digest of each item, and the skipped counts."""
    skipped: Counter[str] = Counter()
    digests = []
    for source in sources:
        local = inputs.fetch(source, scratch)
        digests += [(item.name, file_sha256(item.local)) for item in items(source, local, scratch, skipped)]
        if local.parent == scratch:
            local.unlink()
    return digests, skipped


@pytest.fixture(params=["disk", "store"])
def music(request: pytest.FixtureRequest, tmp_path: Path) -> Path | Store:
    """The place of the containers of a test: a folder or an S3 store."""
    if request.param == "disk":
        return tmp_path / "music"
    stores: Stores = request.getfixturevalue("stores")
    return stores.s3


@pytest.mark.parametrize("kind", ["ustar", "gnu", "pax", "joined", "parquet"])
def test_the_parts_of_a_container_have_its_items_each_once(music: Path | Store, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "made" / ("a.parquet" if kind == "parquet" else "a.tar")
    if kind == "parquet":
        rows(file)
    elif kind == "joined":
        first, second = packed(tmp_path / "1.tar"), tmp_path / "2.tar"
        with tarfile.open(second, "w") as archive:
            member = tarfile.TarInfo("late.wav")
            member.size = 30_000
            archive.addfile(member, io.BytesIO(bytes(30_000)))
        file.parent.mkdir()
        file.write_bytes(first.read_bytes() + second.read_bytes())
    else:
        formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
        packed(file, formats[kind])
    folder = Folder(str(music)) if isinstance(music, Path) else Folder(f"{music.make_bucket()}/music")
    folder.write(file.name, file.read_bytes())
    inputs = Inputs(folder.uri)
    (whole,) = inputs.sources()
    divided = in_parts([whole], inputs)
    assert len(divided) >= 4
    assert [source.uri for source in divided] == [whole.uri] * len(divided)
    assert sum(source.bytes for source in divided) == whole.size
    assert max(source.bytes for source in divided[:-1]) < 30_000
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    expected = read(inputs, [whole], scratch)
    assert len(expected[0]) >= 32
    assert read(inputs, divided, scratch) == expected


@pytest.mark.parametrize("make", [packed, rows])
def test_a_worker_fetches_the_bytes_of_its_part(make: Any, stores: Stores, tmp_path: Path) -> None:
    made = make(tmp_path / f"a{'.tar' if make is packed else '.parquet'}")
    folder = Folder(f"{stores.s3.make_bucket()}/music")
    folder.write(made.name, made.read_bytes())
    inputs = Inputs(folder.uri)
    (whole,) = inputs.sources()
    source = in_parts([whole], inputs)[1]
    assert source.part is not None
    local = inputs.fetch(source, tmp_path)
    fetched, original = local.read_bytes(), made.read_bytes()
    start, stop = source.part.start, source.part.stop
    assert len(fetched) == len(original)
    assert fetched[start:stop] == original[start:stop]
    footer = 8 + int.from_bytes(original[-8:-4], "little") if make is rows else 0
    assert not any(fetched[:start])
    assert not any(fetched[stop : len(fetched) - footer])
    if make is packed:
        with tarfile.open(fileobj=io.BytesIO(fetched[start:stop])) as archive:
            assert archive.getnames()


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "7.wav"
    return member


def again() -> tarfile.TarInfo:
    member = tarfile.TarInfo("7.wav")
    member.size = 10
    return member


@pytest.mark.parametrize("more", [link("hard.wav", tarfile.LNKTYPE), link("soft.wav", tarfile.SYMTYPE), again()])
def test_an_archive_whose_members_depend_on_each_other_stays_whole(tmp_path: Path, more: tarfile.TarInfo) -> None:
    packed(tmp_path / "in" / "a.tar", more=[more])
    inputs = Inputs(str(tmp_path / "in"))
    sources = list(inputs.sources())
    assert in_parts(sources, inputs) == sources


def test_containers_that_are_damaged_or_have_global_headers_stay_whole(tmp_path: Path) -> None:
    damaged = packed(tmp_path / "in" / "damaged.tar")
    damaged.write_bytes(damaged.read_bytes() + b"no header" * 1_000)
    with tarfile.open(tmp_path / "in" / "global.tar", "w", pax_headers={"comment": "of all"}) as archive:
        for number in range(40):
            member = tarfile.TarInfo(f"{number}.wav")
            member.size = 2_000
            archive.addfile(member, io.BytesIO(bytes(2_000)))
    cut_off = rows(tmp_path / "in" / "cut.parquet")
    cut_off.write_bytes(cut_off.read_bytes()[:-20])
    inputs = Inputs(str(tmp_path / "in"))
    sources = list(inputs.sources())
    assert len(sources) == 3
    assert in_parts(sources, inputs) == sources


def planned(music: Path, output: Folder) -> list[tuple[int, Source]]:
    """Plan the contents of `music`, one source per shard."""
    inputs = Inputs(str(music))
    first, new = new_sources(output, inputs.sources(), inputs)
    assigned = assign_shards(new, 0.001, first=len(first))
    append_plan(output, assigned, {})
    return assigned


def commit(music: Path, output: Folder, shards: Sequence[int], scratch: Path) -> None:
    inputs = Inputs(str(music))
    for shard in shards:
        ((source, _),) = read_shard(output, shard)
        digest = {source.key: source_sha256(source, inputs.fetch(source, scratch))}
        commits.commit(output, shard, record_digests(output, shard, digest))


def touch(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))


def test_a_planned_container_counts_as_a_whole(tmp_path: Path) -> None:
    music, output = tmp_path / "in", Folder(str(tmp_path / "out"))
    file = packed(music / "a.tar")
    rows(music / "b.parquet")
    assigned = planned(music, output)
    assert len(assigned) > 8
    assert [read_shard(output, shard) for shard, _ in assigned] == [[(source, [])] for _, source in assigned]
    assert planned(music, output) == []
    packed(music / "later.tar")
    assert {source.uri for _, source in planned(music, output)} == {"later.tar"}
    commit(music, output, range(len(assigned) // 2), tmp_path)
    touch(file)
    assert planned(music, output) == []
    before = file.read_bytes()
    done = next(source for shard, source in assigned if source.uri == "a.tar" and shard < len(assigned) // 2)
    assert done.part is not None
    file.write_bytes(before[: done.part.stop - 600] + b"!" * 100 + before[done.part.stop - 500 :])
    touch(file)
    with pytest.raises(ValueError, match=r"a\.tar has changed since it was planned"):
        planned(music, output)
    file.unlink()
    with pytest.raises(ValueError, match=r"a\.tar was planned for .* and has vanished"):
        planned(music, output)


@pytest.mark.parametrize("make", [packed, rows])
def test_a_part_that_is_none_any_more_is_named(make: Any, tmp_path: Path) -> None:
    made = make(tmp_path / "in" / f"a{'.tar' if make is packed else '.parquet'}")
    inputs = Inputs(str(tmp_path / "in"))
    (whole,) = inputs.sources()
    before = in_parts([whole], inputs)[1]
    assert before.part is not None
    moved = Source(before.uri, before.size, before.version, ByteRange(before.part.start, before.part.stop - 512))
    with pytest.raises(JobError, match=rf"{made.name} has changed since it was planned: restore it"):
        read(inputs, [moved], tmp_path)


def test_a_plan_without_parts_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    packed(tmp_path / "in" / "a.tar")
    inputs, output = Inputs(str(tmp_path / "in")), Folder(str(tmp_path / "out"))
    (whole,) = inputs.sources()
    row = {"shard": 0, "uri": whole.uri, "size": whole.size, "version": whole.version, "left_out": ["a.tar/3.wav"]}
    (tmp_path / "out" / "_plan").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "out" / "_plan" / "0000.parquet")
    assert read_shard(output, 0) == [(whole, ["a.tar/3.wav"])]
    assert new_sources(output, inputs.sources(), inputs)[1] == []


def table(folder: Path) -> list[dict[str, Any]]:
    made = [row for part in sorted((folder / "data").iterdir()) for row in pq.read_table(part).to_pylist()]
    return sorted(made, key=lambda row: (row["audio_file"], row["slice"]))


@pytest.mark.soak_short
def test_prepare_makes_the_same_of_parts(
    local_ray: None, few_loops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    music = tmp_path / "in"
    music.mkdir()
    loops = sorted(few_loops.rglob("*.flac"))
    with tarfile.open(music / "a.tar", "w") as archive:
        for loop in [*loops, loops[0]]:
            archive.add(loop, f"{len(archive.getmembers())}-{loop.name}")
    column = [{"bytes": loop.read_bytes(), "path": loop.name} for loop in loops[:2]]
    pq.write_table(pa.table({"audio": column}), music / "b.parquet", row_group_size=1)
    shutil.copy(loops[1], music / "alone.flac")
    options = {"input_dir": str(music), "shard_minutes": 0.001, "drop_duplicates": True, **SMALL}
    divided = prepare(PrepareOptions(output_dir=str(tmp_path / "divided"), **options))
    monkeypatch.setattr(parts, "MAX_UNDIVIDED_BYTES", 1 << 30)
    whole = prepare(PrepareOptions(output_dir=str(tmp_path / "whole"), **options))
    assert divided["shards"] > whole["shards"]
    assert divided["duplicates"] == whole["duplicates"] == 4
    assert table(tmp_path / "divided") == table(tmp_path / "whole")
