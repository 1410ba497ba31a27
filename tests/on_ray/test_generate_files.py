"""generate: names, levels, tags and pictures of the files of loops, and the manifest as one table of three readers."""

import io
import json
from pathlib import Path
from typing import Any

import av
import duckdb
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, load_dataset
from PIL import Image

from audiodiff_core.audio import decode_audio
from audiodiff_core.checkpoint import load_model
from audiodiff_core.loops.key import Key, measure_key
from audiodiff_core.loops.loudness import loudness_lufs
from audiodiff_core.pipeline import load_pipeline
from audiodiff_core.sampling import GenerateRequest
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.generate.file_names import NameTemplate
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions

RATE = 22_050


def _options(model: Path, out: Path, **values: Any) -> GenerateOptions:
    return GenerateOptions(model=str(model), output_dir=str(out), num_workers=1, **{"steps": 1, **values})


def _rows(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "manifest").to_pylist()
    return rows


def _files(out: Path, folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / folder).iterdir())}


@pytest.fixture(scope="module")
def dressed(local_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return four loops with names by tempo and key, at -20 dBFS, with pictures."""
    out = tmp_path_factory.mktemp("dressed") / "loops"
    generate(_options(model, out, count=4, normalize="peak:-20", name="{bpm}-{key}-{seed}", pictures=True))
    return out


@pytest.fixture(scope="module")
def partly_failed(local_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two loops, between which a request failed, and of a shard without a loop."""
    folder = tmp_path_factory.mktemp("partly")
    rows = ['{"id": "one", "seed": 1}', '{"eta": 2}', '{"id": "two", "seed": 2}', *(['{"eta": 3}'] * 40)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    options = _options(model, folder / "loops", requests=str(folder / "rows.jsonl"), skip_bad=True, batch_size=4)
    generate(options)
    return folder / "loops"


def test_names_state_tempo_and_key(dressed: Path) -> None:
    rows = _rows(dressed)
    for row in rows:
        audio = decode_audio(dressed / row["path"], RATE)
        key = measure_key(audio, RATE)
        assert (row["key"], row["key_confidence"]) == (key.name, pytest.approx(key.confidence, abs=0.05))
        tempo = "no-tempo" if row["tempo_bpm"] is None else f"{round(row['tempo_bpm']):03d}bpm"
        named = "no-key" if row["key"] is None else row["key"].replace("#", "sharp").replace(" ", "-")
        assert row["path"] == f"audio/{tempo}-{named}-{row['seed']:010d}.wav"
    assert sorted(_files(dressed, "audio")) == sorted(Path(row["path"]).name for row in rows)
    assert [row["id"] for row in rows] == [f"{seed:010d}" for seed in range(4)]


def test_levels_are_those_of_the_files(dressed: Path) -> None:
    for row in _rows(dressed):
        audio = decode_audio(dressed / row["path"], RATE)
        assert np.abs(audio).max() == pytest.approx(0.1, abs=1e-4)
        assert row["gain_db"] == pytest.approx(-19, abs=1e-3), "loops have a peak of -1 dBFS"
        assert row["level_db"] == pytest.approx(10 * np.log10(np.mean(np.square(audio, dtype=np.float64))), abs=0.01)


def test_a_loudness_is_reached_or_limited_by_the_peak(local_ray: None, model: Path, tmp_path: Path) -> None:
    generate(_options(model, tmp_path / "loops", count=2, normalize="lufs:-30"))
    for row in _rows(tmp_path / "loops"):
        audio = decode_audio(tmp_path / "loops" / row["path"], RATE)
        assert loudness_lufs(audio, RATE) == pytest.approx(-30, abs=0.1)


def test_pictures_have_low_frequencies_at_the_bottom(dressed: Path, model: Path) -> None:
    rows = _rows(dressed)
    loops = load_pipeline(model).generate([GenerateRequest(seed=row["seed"], steps=1) for row in rows])
    images = {loop.request.seed: loop.image for loop in loops}
    for row in rows:
        assert row["picture_path"] == f"pictures/{Path(row['path']).stem}.png"
        picture = np.asarray(Image.open(dressed / row["picture_path"]))
        assert np.array_equal(picture[::-1], images[row["seed"]])


def test_pictures_are_parts_of_the_folder(dressed: Path, model: Path) -> None:
    options = _options(model, dressed, count=4, normalize="peak:-20", name="{bpm}-{key}-{seed}", pictures=True)
    pictures = _files(dressed, "pictures")
    (dressed / "pictures" / "of a worker that died.png").write_bytes(b"png")
    generate(options)
    assert _files(dressed, "pictures") == pictures
    first = dressed / "pictures" / next(iter(pictures))
    first.write_bytes(b"changed")
    with pytest.raises(JobError, match=f"1 files are missing or changed .pictures/{first.name}"):
        generate(options.model_copy(update={"verify": True}))
    first.write_bytes(pictures[first.name])


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"normalize": None}, "normalize is 'peak:-20' in the folder, None in this job"),
        ({"name": "{id}"}, "name is '{bpm}-{key}-{seed}' in the folder, '{id}' in this job"),
        ({"pictures": False}, "pictures is True in the folder, False in this job"),
    ],
)
def test_other_files_in_the_same_folder_are_refused(
    dressed: Path, model: Path, changed: dict[str, Any], difference: str
) -> None:
    stated = {"normalize": "peak:-20.0", "name": "{bpm}-{key}-{seed}", "pictures": True, **changed}
    with pytest.raises(ValueError, match=difference.replace("{", r"\{")):
        generate(_options(model, dressed, count=4, **stated))


def test_tags_hold_the_request_and_the_model_alone(local_ray: None, model: Path, loops: Path, tmp_path: Path) -> None:
    source = str(loops / "loop_tabla.flac")
    rows = [{"id": "a private name", "kind": "vary", "source": source, "seed": 3, "bars": 1, "bpm": 180}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    generate(_options(model, tmp_path / "out", requests=str(tmp_path / "rows.jsonl"), format="flac"))
    content = (tmp_path / "out" / "audio" / "a private name.flac").read_bytes()
    for private in ("private", "tabla", str(tmp_path), str(model)):
        assert private.encode() not in content
    container: Any = av.open(io.BytesIO(content))
    with container:
        tags = container.metadata
    comment = json.loads(tags["COMMENT"])
    assert comment["model"] == load_model(model).digest
    assert (comment["request"]["kind"], comment["request"]["seed"], comment["request"]["bpm"]) == ("vary", 3, 180)
    assert not comment["request"].keys() & {"id", "source", "encoding"}
    length = soundfile.info(io.BytesIO(content)).frames
    assert (tags["BPM"], tags["LOOPSTART"], tags["LOOPLENGTH"]) == ("180", "0", str(length))


@pytest.mark.parametrize("name", ["dressed", "partly_failed"])
def test_pandas_and_duckdb_read_the_manifest_as_one_table(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    rows = _rows(folder)
    frame = pandas.read_parquet(folder / "manifest")
    assert frame["id"].tolist() == [row["id"] for row in rows]
    assert frame["path"].isna().sum() == sum(row["path"] is None for row in rows)
    query = f"select count(*), count(path), count(audio.path), min(seed) from '{folder}/manifest/*.parquet'"
    with duckdb.connect() as connection:
        (counts,) = connection.execute(query).fetchall()
    paths = sum(row["path"] is not None for row in rows)
    assert counts == (len(rows), paths, paths, min(row["seed"] for row in rows if row["seed"] is not None))


@pytest.mark.parametrize("name", ["dressed", "partly_failed"])
def test_datasets_loads_the_folder_and_plays_it(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(name)
    table = load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert table.features["audio"] == Audio(decode=False)
    assert table["id"][:] == [row["id"] for row in _rows(folder)]
    good = table.filter(lambda row: row["path"] is not None)
    paths = [f"{folder}/{path}" for path in good["path"]]
    playable = good.remove_columns("audio").add_column("audio", paths).cast_column("audio", Audio(decode=False))
    for row in playable:
        audio, rate = soundfile.read(row["audio"]["path"])
        assert len(audio) / rate == pytest.approx(row["duration_s"])
    monkeypatch.chdir(folder)
    audio, _ = soundfile.read(good[0]["audio"]["path"])
    assert len(audio) == len(soundfile.read(paths[0])[0])


def test_failed_requests_have_no_file(partly_failed: Path) -> None:
    rows = _rows(partly_failed)
    assert [row["path"] for row in rows[:3]] == ["audio/one.wav", None, "audio/two.wav"]
    for column in ("audio", "picture_path", "key", "gain_db", "level_db", "sha256"):
        assert rows[1][column] is None
    shards = [pq.read_table(file) for file in sorted((partly_failed / "manifest").iterdir())]
    assert len(shards) > 1
    assert shards[-1]["path"].null_count == len(shards[-1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"count": 1, "name": "{title}-{id}"},
            r"name .*: the field {title} is unknown, use {id}, {seed}, {bpm}, {key}",
        ),
        ({"count": 1, "name": "{}-{id}"}, r"the field {} is unknown"),
        ({"count": 1, "name": "{id:>3}"}, "the field id has a format"),
        ({"count": 1, "name": "{id"}, "double the braces"),
        ({"count": 1, "name": "{key}/{id}"}, "omit slashes"),
        ({"count": 1, "name": ".{id}"}, "leading dot"),
        ({"count": 1, "name": "a\n{id}"}, "control characters"),
        ({"count": 1, "name": "x" * 96 + "{id}"}, "leaves less than 120 bytes for an id"),
        ({"count": 1, "name": "{bpm}"}, r"could have the same name, add {id} or {seed}"),
        ({"count": 1, "name": "{seed}", "sweep": ("steps=1,2",)}, r"could have the same name, add {id}"),
        ({"requests": "r.jsonl", "name": "{seed}"}, r"could have the same name, add {id}"),
        ({"count": 1, "normalize": "peak:3"}, "normalize peak:3: must be peak:DB"),
    ],
)
def test_wrong_names_and_levels_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        GenerateOptions(model="m", output_dir="o", **values)


def test_ids_leave_room_for_the_rest_of_the_name(model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "ü" * 97}))
    options = _options(model, tmp_path / "out", requests=str(tmp_path / "rows.jsonl"), name="{bpm}-{key}-{id}")
    with pytest.raises(ValueError, match="row 1: id: has 194 bytes, use 1 to 193"):
        generate(options)


def test_the_longest_names_are_names_of_files(local_ray: None, model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "x" * 193}))
    generate(
        _options(
            model,
            tmp_path / "out",
            requests=str(tmp_path / "rows.jsonl"),
            name="{bpm}-{key}-{id}",
            format="flac",
            pictures=True,
        )
    )
    (row,) = _rows(tmp_path / "out")
    assert (tmp_path / "out" / row["path"]).exists()


def test_names_of_different_ids_differ() -> None:
    keys = [Key(None, None, 0), Key("A", "minor", 1), Key("A#", "minor", 1), Key("A", "major", 1)]
    for text in ("{id}{bpm}", "{bpm}{id}", "{key}{id}{bpm}", "{id}-{key}", "{seed}{id}{key}", "{id}{{{bpm}}}"):
        template = NameTemplate.parse(text)
        made = {
            (name, seed): {template.name(name, seed, bpm, key) for bpm in (None, 9.0, 90.0, 190.0) for key in keys}
            for name, seed in (("x", 1), ("x1", 1), ("1", 2), ("x0", 2), ("minor", 3), ("no-key", 3), ("bpm", 4))
        }
        names = [name for own in made.values() for name in own]
        assert len(set(names)) == len(names), text
