"""Inputs of prepare and their members: lists, tar shards, Parquet with audio, single files."""

import io
import os
import tarfile
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset

from audiodiff_core.audio import AudioDecodeError
from audiodiff_platform.audio_files import Inputs, Source, items
from audiodiff_platform.audio_files.own_output import output_in
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.mel_data.loops_folder import MANIFEST_SCHEMA


@pytest.fixture
def tar(few_loops: Path, tmp_path: Path) -> Path:
    """A WebDataset shard of two samples, one of them in a folder."""
    file = tmp_path / "shards" / "000.tar"
    file.parent.mkdir()
    with tarfile.open(file, "w") as archive:
        archive.add(few_loops / "loop_mika.flac", "mika.flac")
        archive.addfile(tarfile.TarInfo("mika.json"), io.BytesIO())
        archive.add(few_loops / "sub" / "ambi_piano.flac", "b/piano.flac")
    return file


@pytest.fixture
def parquet(few_loops: Path, tmp_path: Path) -> Path:
    """A Hugging Face dataset as Parquet, with an audio column that is not called audio."""
    file = tmp_path / "hub" / "train.parquet"
    file.parent.mkdir()
    paths = [few_loops / "loop_mika.flac", few_loops / "loop_tabla.flac"]
    rows = {"track": [{"bytes": path.read_bytes(), "path": path.name} for path in paths], "text": ["a", "b"]}
    Dataset.from_dict(rows).cast_column("track", Audio(decode=False)).to_parquet(file)
    return file


def read(inputs: Inputs, source: Source, scratch: Path) -> dict[str, bytes]:
    return {item.name: item.local.read_bytes() for item in items(source, inputs.fetch(source, scratch), scratch)}


@pytest.mark.parametrize("place", ["mel", "link/mel", "in/../in/mel"])
def test_the_output_of_a_job_is_not_its_input(few_loops: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "in" / "mel" / "_tmp").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for name in ("a.flac", "mel/_tmp/item.flac", "melodies.flac"):
        os.link(few_loops / "loop_mika.flac", tmp_path / "in" / name)
    output = tmp_path / (f"in/{place}" if place == "mel" else place)
    inputs = Inputs(str(tmp_path / "in"), str(output))
    assert {source.uri for source in inputs.sources()} == {"a.flac", "melodies.flac"}
    assert inputs.others == 0


def test_where_an_output_folder_lies() -> None:
    assert output_in("s3a://bucket/music/", "s3://bucket/music/mel") == "mel"
    assert output_in("s3://bucket/music", "s3://bucket/music2") is None
    with pytest.raises(ValueError, match=r"^output_dir s3://bucket/music is input_dir: use another folder"):
        output_in("s3a://bucket/music/", "s3://bucket/music")


def test_a_folder_of_all_kinds(few_loops: Path, tar: Path, parquet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "loops").symlink_to(few_loops)
    for name, target in (("a/mika.flac", few_loops / "loop_mika.flac"), ("000.tar", tar), ("p/train.parquet", parquet)):
        (folder / name).parent.mkdir(exist_ok=True)
        os.link(target, folder / name)
    pq.write_table(pa.table({"text": ["no audio"]}), folder / "other.parquet")
    (folder / "._mika.flac").write_bytes(b"of a Mac's file system")
    inputs = Inputs(str(folder))
    sources = {source.uri: source for source in inputs.sources()}
    linked = {"loops/loop_mika.flac", "loops/loop_tabla.flac", "loops/bass_hit_c.flac", "loops/sub/ambi_piano.flac"}
    assert sources.keys() == {"a/mika.flac", "000.tar", "p/train.parquet"} | linked
    assert inputs.others == 3
    mika = (few_loops / "loop_mika.flac").read_bytes()
    assert read(inputs, sources["a/mika.flac"], tmp_path) == {"a/mika.flac": mika}
    assert read(inputs, sources["000.tar"], tmp_path) == {
        "000.tar/mika.flac": mika,
        "000.tar/b/piano.flac": (few_loops / "sub" / "ambi_piano.flac").read_bytes(),
    }
    assert read(inputs, sources["p/train.parquet"], tmp_path) == {
        "p/train.parquet/0-loop_mika.flac": mika,
        "p/train.parquet/1-loop_tabla.flac": (few_loops / "loop_tabla.flac").read_bytes(),
    }


def test_the_manifest_of_generated_loops_is_no_container(few_loops: Path, tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "manifest").mkdir()
    os.link(few_loops / "loop_mika.flac", tmp_path / "audio" / "0.flac")
    rows = [{"path": "audio/0.flac", "audio": {"bytes": None, "path": "audio/0.flac"}}]
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), tmp_path / "manifest" / "000000.parquet")
    inputs = Inputs(str(tmp_path))
    assert [source.uri for source in inputs.sources()] == ["audio/0.flac"]
    assert inputs.skipped == {".parquet": 1}


def test_parquet_files_of_a_folder_are_inspected_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.parquet", "b.parquet", "c.parquet"]
    for name in names:
        (tmp_path / name).touch()
    together = Barrier(len(names))

    def inspected(_: Inputs, name: str) -> bool:
        together.wait(timeout=10)
        return name != "b.parquet"

    monkeypatch.setattr(Inputs, "_may_hold_audio", inspected)
    inputs = Inputs(str(tmp_path))
    assert {source.uri for source in inputs.sources()} == {"a.parquet", "c.parquet"}
    assert inputs.others == 1


@pytest.mark.parametrize("kind", ["tar", "parquet", "flac"])
def test_a_single_file(few_loops: Path, tar: Path, parquet: Path, tmp_path: Path, kind: str) -> None:
    file = {"tar": tar, "parquet": parquet, "flac": few_loops / "loop_mika.flac"}[kind]
    inputs = Inputs(str(file))
    (source,) = inputs.sources()
    assert source.uri == file.name
    assert (few_loops / "loop_mika.flac").read_bytes() in read(inputs, source, tmp_path).values()


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_a_list(few_loops: Path, tmp_path: Path, kind: str) -> None:
    uris = [
        "loop_mika.flac",
        str(few_loops / "sub" / "ambi_piano.flac"),
        f"file://{few_loops}/loop_tabla.flac",
        "not-there.flac",
        "notes.txt",
    ]
    if kind == "txt":
        listing = few_loops / f".list-{tmp_path.name}.txt"
        listing.write_text("\n\n" + "\n".join(uris) + "\n")
    else:
        listing = few_loops / f".list-{tmp_path.name}.parquet"
        pq.write_table(pa.table({"length": list(range(len(uris))), "uri": uris}), listing)
    inputs = Inputs(str(listing))
    sources = {source.uri: source for source in inputs.sources()}
    listing.unlink()
    assert list(sources) == uris[:4]
    assert inputs.others == 1
    for uri, name in zip(uris[:3], ("loop_mika.flac", "sub/ambi_piano.flac", "loop_tabla.flac"), strict=True):
        assert read(inputs, sources[uri], tmp_path) == {uri: (few_loops / name).read_bytes()}
    with pytest.raises(AudioDecodeError, match="no such file"):
        inputs.fetch(sources["not-there.flac"], tmp_path)


@pytest.mark.parametrize("uri", ["https://host/a.flac?X-Signature=abc", "s3://KEY:SECRET@bucket/a.flac"])
def test_a_list_with_secrets_is_refused_without_showing_them(tmp_path: Path, uri: str) -> None:
    (tmp_path / "list.txt").write_text(f"a.flac\n{uri}\n")
    with pytest.raises(ValueError, match="entry 2 holds a query or a password") as caught:
        list(Inputs(str(tmp_path / "list.txt")).sources())
    assert "SECRET" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_list_without_uris_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"length": [1]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=r"neither an audio column nor a column of URIs .*its columns are length"):
        list(Inputs(str(tmp_path / "list.parquet")).sources())


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_container_that_breaks_off_gives_what_it_can(tar: Path, parquet: Path, tmp_path: Path, kind: str) -> None:
    file = {"tar": tar, "parquet": parquet}[kind]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    source = Source(file.name, file.stat().st_size, str(file.stat().st_mtime_ns))
    inputs = Inputs(str(file.parent))
    names: list[str] = []
    with pytest.raises(AudioDecodeError, match=r"^\S+: damaged .*, remaining (members|rows) skipped") as caught:
        names.extend(item.name for item in items(source, inputs.fetch(source, tmp_path), tmp_path))
    assert caught.value.source == file.name
    assert str(tmp_path) not in caught.value.reason


def test_a_name_that_is_not_utf8_is_planned_and_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path / "in") + b"/caf\xe9.flac", "wb"):
        pass
    inputs = Inputs(str(tmp_path / "in"))
    (source,) = inputs.sources()
    assert source.uri == "caf\\xe9.flac"
    with pytest.raises(AudioDecodeError, match="its name is not UTF-8"):
        inputs.fetch(source, tmp_path)


def test_a_source_that_changes_after_it_was_planned_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(b"before")
    inputs = Inputs(str(tmp_path))
    (source,) = inputs.sources()
    (tmp_path / "a.flac").write_bytes(b"after it")
    with pytest.raises(JobError, match=r"a\.flac has changed since it was planned"):
        inputs.fetch(source, tmp_path)
    (tmp_path / "a.flac").unlink()
    with pytest.raises(JobError, match=r"a\.flac was planned and has vanished"):
        inputs.fetch(source, tmp_path)


@pytest.mark.parametrize(
    "metadata",
    ["[", "[]", '{"info": {"features": [1]}}', '{"info": {"features": {"tags": [{"_type": "Value"}], "audio": 3}}}'],
)
def test_parquet_with_other_metadata_is_taken_by_its_columns(tmp_path: Path, metadata: str) -> None:
    (tmp_path / "in").mkdir()
    table = pa.table({"tags": [["a"]], "audio": [b"RIFF"]})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "in" / "a.parquet")
    inputs = Inputs(str(tmp_path / "in"))
    (source,) = inputs.sources()
    assert read(inputs, source, tmp_path) == {"a.parquet/0": b"RIFF"}
