"""Planned files that were touched, copied or restored: the same content is accepted.

Different content is refused by name.
"""

import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from audiodiff_core.embeddings.audio_encoder import AudioEncoder
from audiodiff_platform.audio_files import Inputs
from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.generate import stage
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.engine import Counts, ShardWork
from audiodiff_platform.work.outcomes import Outcome
from audiodiff_platform.work.plan import append_plan, assign_shards, new_sources
from audiodiff_platform.work.shard_runner import HandingRunner
from audiodiff_platform.work.source_digests import record_digests
from audiodiff_platform.work.worker_runner import FinishRunner
from tests.rare import rare
from tests.servers.stores import Store

SMALL: dict[str, Any] = {"resolution": "32", "hop_length": 1024, "num_workers": 1}


def touch(*files: Path) -> None:
    for file in files:
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def change(file: Path) -> None:
    """Replace the content of a file by different content of the same size."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    touch(file)


def data(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for part in ("data", "quarantine", "_commits")
        for file in sorted((folder / part).iterdir())
    }


class Planned:
    """Input folder whose files are planned into one shard, with methods to commit and to plan again."""

    def __init__(self, place: Path, files: dict[str, bytes]) -> None:
        self.music, self.output = place / "in", Folder(str(place / "out"))
        for name, content in files.items():
            (self.music / name).parent.mkdir(parents=True, exist_ok=True)
            (self.music / name).write_bytes(content)
        self.inputs = Inputs(str(self.music))
        append_plan(self.output, assign_shards(new_sources(self.output, self.inputs.sources())[1], 1e9, first=0), {})

    def commit(self) -> None:
        digests = {source.uri: sha256 for source in self.inputs.sources() if (sha256 := self.inputs.sha256(source))}
        commits.commit(self.output, 0, record_digests(self.output, 0, digests))

    def run_again(self) -> None:
        inputs = Inputs(str(self.music))
        shards, new = new_sources(self.output, inputs.sources(), inputs)
        assert (list(shards), new) == ([0], [])


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A folder of an AudioEncoder with random weights."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "AudioEncoder"}')
    save_file(AudioEncoder().state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    return Planned(tmp_path, {"a.wav": b"a" * 100, "b/c.wav": b"c" * 100, "empty.wav": b""})


def test_touched_files_of_a_finished_shard_are_the_same(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    planned.commit()
    plan = planned.output.read("_plan/0000.parquet")
    for _ in range(2):
        touch(planned.music / "a.wav", planned.music / "empty.wav")
        planned.run_again()
    assert planned.output.names("_plan/*.parquet") == ["_plan/0000.parquet"]
    assert planned.output.read("_plan/0000.parquet") == plan

    def read(*_: object) -> str:
        raise AssertionError("nothing was touched since, so nothing is read")

    monkeypatch.setattr(Inputs, "sha256", read)
    planned.run_again()


def test_a_file_that_is_restored_with_its_first_time_is_the_same(planned: Planned) -> None:
    planned.commit()
    before = (planned.music / "a.wav").stat()
    touch(planned.music / "a.wav")
    planned.run_again()
    os.utime(planned.music / "a.wav", ns=(before.st_atime_ns, before.st_mtime_ns))
    planned.run_again()


def test_another_content_of_the_same_size_is_refused_also_after_a_touch(planned: Planned) -> None:
    planned.commit()
    touch(planned.music / "a.wav", planned.music / "b" / "c.wav")
    planned.run_again()
    change(planned.music / "b" / "c.wav")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"b/c\.wav has changed since it was planned"):
            planned.run_again()
    (planned.music / "b" / "c.wav").unlink()
    with pytest.raises(ValueError, match=r"b/c\.wav was planned for .* and has vanished"):
        planned.run_again()


def test_a_touched_file_that_nothing_was_made_of_yet_is_taken(planned: Planned, tmp_path: Path) -> None:
    touch(planned.music / "a.wav")
    planned.run_again()
    (source,) = (source for source in planned.inputs.sources() if source.uri == "a.wav")
    touch(planned.music / "a.wav")
    assert planned.inputs.fetch(source, tmp_path).read_bytes() == b"a" * 100
    (planned.music / "a.wav").write_bytes(b"of another size")
    with pytest.raises(ValueError, match=r"a\.wav has changed since it was planned"):
        planned.run_again()


def test_a_source_that_could_not_be_read_is_not_taken_for_the_same(planned: Planned) -> None:
    commits.commit(planned.output, 0, record_digests(planned.output, 0, {}))
    touch(planned.music / "a.wav")
    with pytest.raises(ValueError, match=r"a\.wav has changed since it was planned"):
        planned.run_again()


def test_digests_of_a_worker_that_did_not_commit_are_not_taken(planned: Planned) -> None:
    planned.commit()
    change(planned.music / "a.wav")
    record_digests(
        planned.output, 0, {source.uri: str(planned.inputs.sha256(source)) for source in planned.inputs.sources()}
    )
    with pytest.raises(ValueError, match=r"a\.wav has changed since it was planned"):
        planned.run_again()


@pytest.mark.parametrize("loose_at_most", [rare(commits.MAX_LOOSE_RECORDS, id="records"), pytest.param(0, id="packs")])
def test_prepare_goes_on_with_a_restored_corpus(
    local_ray: None,
    few_loops: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    loose_at_most: int,
) -> None:
    """The files include a container, a duplicate, a track without a slice and a file without audio."""
    monkeypatch.setattr(commits, "MAX_LOOSE_RECORDS", loose_at_most)
    music, mel = tmp_path / "in", tmp_path / "mel"
    shutil.copytree(few_loops, music)
    shutil.copy(few_loops / "loop_mika.flac", music / "mika, again.flac")
    (music / "broken.flac").write_bytes(b"no audio")
    with tarfile.open(music / "z.tar", "w") as archive:
        archive.add(few_loops / "loop_tabla.flac", "another.flac")
    options = PrepareOptions(input_dir=str(music), output_dir=str(mel), drop_duplicates=True, **SMALL)
    first = prepare(options)
    made = data(mel)
    touch(*(file for file in music.rglob("*") if file.is_file()))
    assert {**prepare(options), "seconds": 0} == {**first, "seconds": 0}
    assert data(mel) == made
    assert "7 planned files have another time or version" in capfd.readouterr().err
    assert {**prepare(options), "seconds": 0} == {**first, "seconds": 0}
    assert "another time" not in capfd.readouterr().err
    for name in ("z.tar", "mika, again.flac", "broken.flac", "sub/ambi_piano.flac"):
        whole = (music / name).read_bytes()
        change(music / name)
        with pytest.raises(ValueError, match=f"{name} has changed since it was planned"):
            prepare(options)
        (music / name).write_bytes(whole)
    assert {**prepare(options), "seconds": 0} == {**first, "seconds": 0}


def test_encode_goes_on_with_a_restored_corpus(local_ray: None, few_loops: Path, tmp_path: Path, encoder: Path) -> None:
    shutil.copytree(few_loops, tmp_path / "in")
    options = EncodeOptions(
        input_dir=str(tmp_path / "in"), encoder=str(encoder), output_dir=str(tmp_path / "out"), num_workers=1
    )
    first = encode(options)
    touch(tmp_path / "in" / "loop_mika.flac")
    assert {**encode(options), "seconds": 0} == {**first, "seconds": 0}
    change(tmp_path / "in" / "loop_mika.flac")
    with pytest.raises(ValueError, match=r"loop_mika\.flac has changed since it was planned"):
        encode(options)


def test_an_object_that_was_copied_in_parts_is_the_same(store: Store) -> None:
    bucket = store.make_bucket()
    music, output = Folder(f"{bucket}/music"), Folder(f"{bucket}/mel")
    music.write("a.wav", b"a" * 100)
    inputs = Inputs(music.uri)
    _, new = new_sources(output, inputs.sources())
    # For an object uploaded in parts, the store reports a digest that is not the digest of its bytes.
    in_parts = [type(source)(source.uri, source.size, "0123456789abcdef-2") for source in new]
    append_plan(output, assign_shards(in_parts, 1e9, first=0), {})
    commits.commit(output, 0, record_digests(output, 0, {source.uri: str(inputs.sha256(source)) for source in new}))
    assert new_sources(output, inputs.sources(), inputs)[1] == []
    music.write("a.wav", b"b" * 100)
    with pytest.raises(ValueError, match=r"a\.wav has changed since it was planned"):
        new_sources(output, inputs.sources(), inputs)


class TwoStagesHere:
    """Engine that runs both stages of generate in this process."""

    def run(self, work: ShardWork, shards: Sequence[int]) -> Iterator[Counts]:
        finishing = FinishRunner(work)
        for row in HandingRunner(work)({"shards": shards}):
            outcome = Outcome.of(finishing(row))
            assert outcome.kind == "done", outcome.failure
            yield {**outcome.counts, "shard": outcome.shard}


@contextmanager
def two_stages_here(*_: object, **__: object) -> Iterator[TwoStagesHere]:
    yield TwoStagesHere()


def copied(file: Path, folder: Path) -> Path:
    return Path(shutil.copy(file, folder))


def loops_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "audio").iterdir()}


def generated(model: Path, place: Path, **more: Any) -> dict[str, bytes]:
    """Run generate, and return its audio files. A shard holds four loops."""
    given = {"model": str(model), "output_dir": str(place / "out"), "num_workers": 1, "steps": 2, "batch_size": 1}
    generate(GenerateOptions.model_validate({**given, **more}))
    return loops_of(place / "out")


def requests_of(place: Path, *sources: dict[str, Any]) -> str:
    """Write a file of five requests, which have the fields of `sources` in turn."""
    rows = [{**sources[seed % len(sources)], "seed": seed} for seed in range(5)]
    (place / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(place / "rows.jsonl")


@pytest.mark.parametrize("kind", ["requests", "two stages", "gate"])
def test_generate_goes_on_with_touched_sources(
    model: Path,
    few_loops: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    if kind == "two stages":
        monkeypatch.setattr(stage, "engine", two_stages_here)
    take, other = (copied(few_loops / f"{name}.flac", tmp_path) for name in ("loop_tabla", "bass_hit_c"))
    rows: list[dict[str, Any]] = [
        {"kind": "vary", "source": str(take)},
        {"kind": "interpolate", "sources": [str(take), str(other)]},
    ]
    given = {"reject": ("silence",)} if kind == "gate" else {}
    first = generated(model, tmp_path, requests=requests_of(tmp_path, *rows), **given)
    touch(take, other)
    for compared in (True, False):
        assert generated(model, tmp_path, requests=requests_of(tmp_path, *rows), **given) == first
        assert ("2 planned files have another time or version" in capfd.readouterr().err) == compared
    plan = tmp_path / "out" / ("_candidates/_plan" if kind == "gate" else "_plan")
    assert [file.name for file in (plan / "sources").iterdir()] == ["0000.parquet"]
    change(other)
    with pytest.raises(ValueError, match=rf"^{other} has changed since it was planned for {plan.parent}: restore it"):
        generated(model, tmp_path, requests=requests_of(tmp_path, *rows), **given)
    assert loops_of(tmp_path / "out") == first


@pytest.mark.parametrize("of_folder", [True, False], ids=["input_dir", "requests"])
def test_generate_makes_no_loops_of_a_changed_source(
    model: Path, few_loops: Path, tmp_path: Path, of_folder: bool
) -> None:
    (tmp_path / "in").mkdir()
    take = copied(few_loops / "loop_tabla.flac", tmp_path / "in")
    if of_folder:
        given: dict[str, Any] = {"input_dir": str(tmp_path / "in"), "count": 5}
    else:
        given = {"requests": requests_of(tmp_path, {"kind": "vary", "source": str(take)})}
    first = generated(model, tmp_path, **given)
    assert len(first) == 5
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "_commits" / "000001.json").unlink()
    touch(take)
    whole = take.read_bytes()
    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"more"):
        take.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{take} has changed since it was planned for {tmp_path}/out: restore"):
            generated(model, tmp_path, **given)
    assert not (tmp_path / "out" / "_commits" / "000001.json").exists()
    take.write_bytes(whole)
    assert generated(model, tmp_path, **given) == first


def test_generate_does_not_compare_sources_of_plans_without_them(model: Path, few_loops: Path, tmp_path: Path) -> None:
    take = copied(few_loops / "loop_tabla.flac", tmp_path)
    rows = requests_of(tmp_path, {"kind": "vary", "source": str(take)})
    first = generated(model, tmp_path, requests=rows)
    shutil.rmtree(tmp_path / "out" / "_plan" / "sources")
    change(take)
    assert generated(model, tmp_path, requests=rows) == first
