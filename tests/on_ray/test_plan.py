"""The plan: shards of about equal size that depend on the sources alone.

New sources are appended. Planned shards never change.
"""

from pathlib import Path

import pytest

from audiodiff_platform.audio_files import Source
from audiodiff_platform.storage import Folder
from audiodiff_platform.work.plan import append_plan, assign_shards, new_sources, read_shard, shard_seconds, sizes
from tests.servers.stores import Store


def sources(count: int, size: int = 24_000 * 60, prefix: str = "") -> list[Source]:
    """Return `count` files of about a minute of compressed audio each."""
    return [Source(f"{prefix}album {index // 10}/{index:05d}.mp3", size, "1") for index in range(count)]


def test_shards_are_balanced_and_neighbours_apart() -> None:
    given = sources(1_000)
    shards = sizes(assign_shards(given, shard_seconds(given, 300), first=0))
    assert 190 <= len(shards) <= 210
    assert {size.sources for size in shards.values()} <= {4, 5, 6}
    assert sum(size.sources for size in shards.values()) == 1_000
    albums = [uri.uri.split("/")[0] for shard, uri in assign_shards(given, 600, first=0) if shard == 0]
    assert len(set(albums)) > len(albums) / 2


def test_the_cut_depends_on_the_sources_alone() -> None:
    assert assign_shards(sources(100), 600, first=7) == assign_shards(sources(100)[::-1], 600, first=7)
    assert min(shard for shard, _ in assign_shards(sources(100), 600, first=7)) == 7


def test_a_file_larger_than_a_shard_is_one() -> None:
    long = Source("long.wav", 176_000 * 36_000, "1")
    shards: dict[int, list[str]] = {}
    for shard, source in assign_shards([long, *sources(50)], 600, first=0):
        shards.setdefault(shard, []).append(source.uri)
    (with_long,) = (uris for uris in shards.values() if "long.wav" in uris)
    assert len(with_long) <= 2
    assert len(shards) > 1


def test_the_size_of_a_shard_grows_with_the_corpus_within_bounds() -> None:
    assert shard_seconds(sources(1), 300) == 300
    assert shard_seconds(sources(256 * 10), 300) == 600
    assert shard_seconds([Source("a.mp3", 10**12, "1")], 300) == 3 * 3_600


def test_a_plan_is_read_back_by_shard_and_only_appended_to(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    first = assign_shards(sources(5_000, size=2_400_000), 600, first=0)
    append_plan(folder, first, {first[0][1].uri: ["member"]})
    file = (tmp_path / "_plan" / "0000.parquet").read_bytes()
    planned, new = new_sources(folder, sources(5_000, size=2_400_000) + sources(10, prefix="new "))
    assert planned == sizes(first)
    assert {source.uri[:4] for source in new} == {"new "}
    assert len(new) == 10
    append_plan(folder, assign_shards(new, 600, first=len(planned)), {})
    assert (tmp_path / "_plan" / "0000.parquet").read_bytes() == file
    for shard in (0, len(planned) // 2, len(planned) - 1):
        expected = [
            (source, ["member"] if source == first[0][1] else []) for number, source in first if number == shard
        ]
        assert read_shard(folder, shard) == expected
    assert {source.uri for source, _ in read_shard(folder, len(planned))} <= {source.uri for source in new}


def test_what_was_planned_must_be_there_unchanged(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    append_plan(folder, assign_shards(sources(3), 600, first=0), {})
    with pytest.raises(ValueError, match=r"00001\.mp3 was planned for .* and has vanished"):
        new_sources(folder, [source for source in sources(3) if "00001" not in source.uri])
    with pytest.raises(ValueError, match=r"00002\.mp3 has changed since it was planned"):
        new_sources(folder, [*sources(2), Source(sources(3)[2].uri, 24_000 * 60, "2")])


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_worker_opens_few_of_many_plan_files(store: Store) -> None:
    folder = Folder(f"{store.make_bucket()}/mel")
    additions = 40
    for day in range(additions):
        added = sources(3, prefix=f"{day} ")
        append_plan(folder, [(2 * day, added[0]), (2 * day, added[1]), (2 * day + 1, added[2])], {}, day)
    read = store.proxy.inject("drop", "GET", f"{folder.root}/_plan/", times=1, every=1 << 30)  # counts, drops nothing
    for day in (additions - 1, 0, 17, 38):
        before = read.seen
        uris = [[source.uri for source, _ in read_shard(folder, shard)] for shard in (2 * day, 2 * day + 1)]
        assert uris == [
            [source.uri for source in group]
            for group in (sources(3, prefix=f"{day} ")[:2], sources(3, prefix=f"{day} ")[2:])
        ]
        assert 0 < read.seen - before <= 2 * (1 if day == additions - 1 else 1 + additions.bit_length())
    assert read_shard(folder, 2 * additions) == []
