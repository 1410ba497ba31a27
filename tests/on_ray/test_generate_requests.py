"""generate from files of requests, sweeps and folders: the bytes of the core, bad rows, growth, sources, encodings."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiodiff_core.checkpoint import load_model, load_outline
from audiodiff_core.pipeline import LoopPipeline, RequestCheck
from audiodiff_core.pipeline import sources as pipeline_sources
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from audiodiff_platform.generate.checked_rows import RowChecks
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.loop_rows import loop_rows
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_rows import MAX_ROW_BYTES, read_rows
from audiodiff_platform.mel_data.encodings import encoded_table, read_encodings
from tests.random_models import save_conditional
from tests.rare import rare

DIM = 8


@pytest.fixture(scope="module")
def take(loops: Path) -> str:
    return str(loops / "loop_tabla.flac")


@pytest.fixture(scope="module")
def kinds(take: str) -> list[dict[str, Any]]:
    """Return a row of each kind."""
    return [
        {"seed": 5},
        {"kind": "vary", "source": take, "strength": 0.5, "id": "varied"},
        {"kind": "inpaint", "source": take, "regenerate": [[0.1, 0.6]], "slice": 1},
        {"kind": "extend", "source": take, "duration_s": 2.0},
        {"kind": "remix", "source": take, "start_step": 1, "id": "Überarbeitet 1"},
        {"kind": "invert", "source": take, "refinements": 1},
        {"kind": "interpolate", "seeds": [1, 2, 3], "position": 0.25},
    ]


def _file(folder: Path, rows: list[Any], name: str = "requests.jsonl") -> str:
    file = folder / name
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(file)


def _options(model: Path, out: Path, **more: Any) -> GenerateOptions:
    return GenerateOptions(model=str(model), output_dir=str(out), num_workers=1, **more)


def _audio(folder: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in (folder / "audio").iterdir()}


def _times(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.*") if file.parent.name in ("audio", "manifest")}


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(folder / "manifest").to_pylist()}


def _made_by_the_core(model: Path, rows: list[dict[str, Any]], **defaults: Any) -> list[bytes]:
    profile = ExecutionProfile.here()
    profile.prepare_process()
    pipeline = LoopPipeline.of(load_model(model), profile)
    requests = [REQUEST.validate_python({**defaults, **row}) for row in rows]
    loops = {loop.number: loop for loop in pipeline.generate(requests)}
    return [loops[number].file(22_050, "wav") for number in range(len(rows))]


@pytest.fixture(scope="module")
def mixed(local_ray: None, model: Path, kinds: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.in_process import in_process

    folder = tmp_path_factory.mktemp("mixed")
    with in_process():
        generate(_options(model, folder / "loops", requests=_file(folder, kinds), steps=3))
    return folder / "loops"


def test_each_kind_has_the_bytes_of_the_core(mixed: Path, model: Path, kinds: list[dict[str, Any]]) -> None:
    audio = _audio(mixed)
    ids = [row.get("id", f"{number:010d}") for number, row in enumerate(kinds, start=1)]
    assert sorted(audio) == sorted(ids)
    assert [audio[name] for name in ids] == _made_by_the_core(model, kinds, steps=3)


def test_the_manifest_has_the_parameters_of_each_kind(mixed: Path, take: str) -> None:
    rows = _manifest(mixed)
    assert [row["kind"] for row in rows.values()] == [
        "generate", "vary", "inpaint", "extend", "remix", "invert", "interpolate",
    ]  # fmt: skip
    assert {row["steps"] for row in rows.values()} == {3}
    varied, inpainted, extended = rows["varied"], rows["0000000003"], rows["0000000004"]
    assert (varied["source"], varied["strength"], varied["start_step"], varied["slice"]) == (take, 0.5, None, 0)
    assert (inpainted["regenerate"], inpainted["slice"]) == ([[0.1, 0.6]], 1)
    assert (extended["requested_duration_s"], extended["overlap"]) == (2.0, 0.5)
    assert rows["0000000007"]["seeds"] == [1, 2, 3]
    assert rows["0000000001"]["source"] is None
    assert list(pq.read_table(mixed / "manifest").to_pandas()["kind"]) == [row["kind"] for row in rows.values()]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=[pytest.mark.workers, pytest.mark.soak_short])])
def test_other_workers_and_shards_give_the_same_bytes(
    mixed: Path, model: Path, kinds: list[dict[str, Any]], tmp_path: Path, workers: int
) -> None:
    rows = [{**row, "id": row.get("id", f"{number:010d}")} for number, row in enumerate(kinds, start=1)]
    others = [{"seed": seed, "id": f"other-{seed}", "steps": 1 + seed % 4, "width": 16} for seed in range(14)]
    file = _file(tmp_path, [*others, *reversed(rows)])
    options = {"model": str(model), "output_dir": str(tmp_path / "loops"), "requests": file, "steps": 3}
    generate(GenerateOptions(num_workers=workers, **options))
    assert len(list((tmp_path / "loops" / "_commits").iterdir())) == 2
    audio = _audio(tmp_path / "loops")
    assert {name: audio[name] for name in _audio(mixed)} == _audio(mixed)


def test_requests_are_the_same_from_any_format(mixed: Path, tmp_path: Path, kinds: list[dict[str, Any]]) -> None:
    names = sorted({name for row in kinds for name in row})
    columns = {name: [row.get(name) for row in kinds] for name in names}
    pq.write_table(pa.table(columns), tmp_path / "requests.parquet")
    lines = [names, *([_cell(row.get(name)) for name in names] for row in kinds)]
    text = "".join(",".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in line) + "\r\n" for line in lines)
    (tmp_path / "requests.csv").write_text(f"\ufeff{text}")
    expected = [REQUEST.validate_python(row) for row in kinds]
    for extension in ("csv", "parquet"):
        rows = list(read_rows(str(tmp_path / f"requests.{extension}")))
        assert all(isinstance(row, Mapping) for row in rows)
        assert [REQUEST.validate_python(row) for row in rows] == expected


def _cell(value: Any) -> str:
    return "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


BAD: list[tuple[Any, str]] = [
    ({"steps": 0}, "row 2: steps: input should be greater than or equal to 1"),
    ({"stepz": 3}, "row 2: stepz: is unknown for the kind generate"),
    ({"kind": "hum"}, "row 2: kind: hum is unknown: use one of generate, vary"),
    ({"kind": "vary"}, "row 2: source: is required for the kind vary"),
    ({"kind": "vary", "source": "/none/there.wav"}, "row 2: source: /none/there.wav: no such file"),
    ({"kind": "vary", "source": "s3://key:secret@bucket/a.wav"}, "row 2: source: holds a query or a password"),
    ({"width": 17}, "row 2: width: 17: the network takes multiples of"),
    ({"encoding": [1.0, 2.0]}, "row 2: encoding: the model is not conditional, omit them"),
    ({"encoding": "one"}, "row 2: encoding: one: pass encodings"),
    ({"guidance_scale": 2}, "row 2: guidance_scale: 2.0: the model is not conditional"),
    ({"bars": 2}, "row 2: bars: 2 without bpm"),
    ({"kind": "invert", "source": "/none", "scheduler": "ddpm"}, "row 2: "),
    ({"id": "FIRST"}, "row 2: id: FIRST is the id of row 1"),
    ({"id": "0000000003"}, "row 3: id: 0000000003 is the id of row 2"),
    ({"id": ["a"]}, "row 2: id: is not text"),
    ('{"kind": "vary", "source": "a\\u0000b"}\n', "row 2: source: "),
    ('{"kind": "vary", "source": "a\\ud800b"}\n', "row 2: source: "),
    ({"kind": "vary", "source": "/tmp"}, "row 2: source: /tmp: is not a file"),
    ({"id": "../up"}, "row 2: id: ../up is not a file name"),
    ({"id": "a\n"}, "row 2: id: 'a\\n' holds control characters"),
    ({"id": "x" * 201}, "row 2: id: has 201 bytes"),
    ({"seed": 2**32}, "row 2: seed: input should be less than or equal to 4294967295"),
    ("{not json}\n", "row 2: row: is not JSON"),
    ("[1, 2]\n", "row 2: row: is not a JSON object"),
    (json.dumps({"id": "y" * MAX_ROW_BYTES}) + "\n", "row 2: row: has more than 1,048,576 bytes"),
    ("[" * 100_000 + "\n", "row 2: row: is not JSON"),
]


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_a_bad_row_is_named_before_anything_is_written(
    model: Path, tmp_path: Path, command: Callable[..., tuple[int, str]], row: Any, reason: str
) -> None:
    file = _file(tmp_path, [{"id": "first"}, row, {"seed": 3}])
    status, line = command("--model", model, "--output_dir", tmp_path / "out", "--requests", file)
    assert (status, f"requests {file}: 1 of 3 rows are bad (correct them, or use skip_bad): {reason}" in line) == (
        2,
        True,
    ), line
    assert not (tmp_path / "out").exists()


def test_all_bad_rows_are_named_together_up_to_a_number(model: Path, tmp_path: Path) -> None:
    file = _file(tmp_path, [{"steps": 0, "id": ".."}, *({"eta": 2} for _ in range(30))])
    with pytest.raises(ValueError, match=r"31 of 31 rows are bad .*: row 1: id: .*; row 1: steps: ") as raised:
        generate(_options(model, tmp_path / "out", requests=file))
    assert "row 20: eta" in str(raised.value)
    assert "row 21" not in str(raised.value)
    assert "and 11 more" in str(raised.value)


def test_bad_rows_are_known_before_weights_are_read(model: Path, tmp_path: Path) -> None:
    config = load_outline(model)
    assert all(parameter.is_meta for parameter in config.unet.parameters())
    assert RequestCheck(config).geometry.mel == load_model(model).mel
    (tmp_path / "model").mkdir()
    for file in model.rglob("*.json"):
        (tmp_path / "model" / file.relative_to(model)).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / file.relative_to(model)).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="row 1: steps: "):
        generate(_options(tmp_path / "model", tmp_path / "out", requests=_file(tmp_path, [{"steps": 0}])))
    with pytest.raises(ValueError, match=r"weights|safetensors"):
        generate(_options(tmp_path / "model", tmp_path / "out", requests=_file(tmp_path, [{"steps": 1}])))


def test_bad_rows_can_be_skipped(model: Path, tmp_path: Path) -> None:
    file = _file(tmp_path, [{"id": "good"}, {"eta": 2}, "nothing\n", {"seed": 4, "id": "four"}])
    summary = generate(_options(model, tmp_path / "out", requests=file, skip_bad=True, steps=2))
    assert (summary["loops"], summary["failed"]) == (2, 2)
    rows = pq.read_table(tmp_path / "out" / "manifest").to_pylist()
    assert [row["path"] for row in rows] == ["audio/good.wav", None, None, "audio/four.wav"]
    assert rows[1]["reason"] == "row 2: eta: input should be less than or equal to 1"
    assert rows[2]["reason"].startswith("row 3: row: is not JSON")


def test_rows_that_were_skipped_stay_skipped(model: Path, take: str, tmp_path: Path) -> None:
    out, late = tmp_path / "out", tmp_path / "late.flac"
    rows: list[dict[str, Any]] = [{"id": "late", "kind": "vary", "source": str(late)}, {"id": "good"}]
    generate(_options(model, out, requests=_file(tmp_path, rows), skip_bad=True, steps=1))
    before = _times(out)
    late.symlink_to(take)
    for skip_bad in (True, False):
        summary = generate(_options(model, out, requests=_file(tmp_path, rows), skip_bad=skip_bad, steps=1))
        assert (summary["loops"], summary["failed"]) == (1, 1)
    assert _times(out) == before
    rows += [{**rows[0], "id": "again"}]
    generate(_options(model, out, requests=_file(tmp_path, rows), steps=1))
    assert sorted(_audio(out)) == ["again", "good"]
    late.unlink()
    with pytest.raises(
        ValueError, match=r"row 3 \(again\) of .* has changed \(row 3: source: .*/late.flac: no such file"
    ):
        generate(_options(model, out, requests=_file(tmp_path, rows), skip_bad=True, steps=1))


def test_sources_that_nodes_do_not_share_are_refused(
    model: Path, take: str, tmp_path: Path, unshared: Path, probed: list[str]
) -> None:
    (unshared / "sub").mkdir()
    (unshared / "sub" / "take.flac").symlink_to(take)
    source, out = str(unshared / "sub" / "take.flac"), tmp_path / "out"
    rows = [{"seed": 1}, {"kind": "vary", "source": take}, {"kind": "interpolate", "sources": [take, source]}]
    for option, given in (("source", {"requests": _file(tmp_path, rows)}), ("input_dir", {"input_dir": str(unshared)})):
        with pytest.raises(ValueError, match=f"^{option} {unshared}/sub is missing on 1 of 2 nodes: use a path that"):
            generate(_options(model, out, steps=2, **given))
    assert not (out / "_plan").exists()
    generate(_options(model, out, requests=_file(tmp_path, rows[:2]), steps=2))
    assert take in probed


def test_sources_that_cannot_be_decoded_fail_alone(model: Path, take: str, tmp_path: Path) -> None:
    (tmp_path / "damaged.wav").write_bytes(b"RIFF, but no more")
    rows: list[dict[str, Any]] = [
        {"kind": "vary", "source": source} for source in (take, str(tmp_path / "damaged.wav"))
    ]
    rows.append({"kind": "vary", "source": take, "slice": 10_000 - 1})
    rows.append({"kind": "remix", "source": str(tmp_path / "damaged.wav")})
    summary = generate(_options(model, tmp_path / "out", requests=_file(tmp_path, rows), steps=2))
    assert (summary["loops"], summary["failed"]) == (1, 3)
    reasons = [row["reason"] for row in _manifest(tmp_path / "out").values()]
    assert reasons[0] is None
    assert all("damaged.wav" in str(reasons[number]) for number in (1, 3))
    assert "slice 9999" in reasons[2]


def test_workers_decode_no_source_themselves(
    model: Path, take: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for decode in ("slice_of_file", "decode_audio"):
        monkeypatch.delattr(pipeline_sources, decode)
    rows = [{"kind": kind, "source": take} for kind in ("vary", "remix")]
    assert generate(_options(model, tmp_path / "out", requests=_file(tmp_path, rows), steps=1))["loops"] == 2


def test_a_growth_that_was_stopped_goes_on(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(_options(model, out, count=4, steps=1))
    generate(_options(model, out, count=24, steps=1))
    assert len(list((out / "_plan").glob("*.parquet"))) == 2
    expected = _audio(out)
    (out / "_SUCCESS").unlink()
    (out / "_commits" / "000002.json").unlink()
    with pytest.raises(ValueError, match="which is not requested"):
        generate(_options(model, out, count=4, steps=1))
    generate(_options(model, out, count=24, steps=1))
    assert _audio(out) == expected


def test_more_loops_leave_the_first_alone(model: Path, tmp_path: Path) -> None:
    generate(_options(model, tmp_path / "grown", count=6, steps=1))
    first = _times(tmp_path / "grown")
    assert generate(_options(model, tmp_path / "grown", count=20, steps=1))["loops"] == 20
    assert {file: time for file, time in _times(tmp_path / "grown").items() if file in first} == first
    generate(_options(model, tmp_path / "whole", count=20, steps=1))
    assert _audio(tmp_path / "grown") == _audio(tmp_path / "whole")
    assert sorted(_manifest(tmp_path / "grown")) == sorted(_audio(tmp_path / "grown"))
    with pytest.raises(ValueError, match=r"holds the loop 0000000006 \(row 7\), which is not requested"):
        generate(_options(model, tmp_path / "grown", count=6, steps=1))
    assert (tmp_path / "grown" / "_SUCCESS").exists()


def test_rows_are_added_and_none_is_changed(model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"seed": seed, "steps": 1} for seed in range(5)]
    out = tmp_path / "out"
    generate(_options(model, out, requests=_file(tmp_path, rows[:3])))
    before = _times(out)
    generate(_options(model, out, requests=_file(tmp_path, rows)))
    after = _times(out)
    assert {file: after[file] for file in before} == before
    assert len(_audio(out)) == 5
    generate(_options(model, out, requests=_file(tmp_path, rows)))
    assert _times(out) == after
    changed = [*rows[:1], {**rows[1], "eta": 0.5}, {"seed": 9}, *rows[3:]]
    with pytest.raises(ValueError, match=r"row 2 \(0000000002\) of .* changed \(eta is 0.0 in the folder, 0.5 in this"):
        generate(_options(model, out, requests=_file(tmp_path, changed)))
    with pytest.raises(ValueError, match=r"holds the loop 0000000004 \(row 4\), which is not requested"):
        generate(_options(model, out, requests=_file(tmp_path, rows[:3])))
    assert _times(out) == after


def test_a_sweep_combines_its_values(model: Path, tmp_path: Path) -> None:
    sweep = ("steps=1,2", "eta=0,1")
    generate(_options(model, tmp_path / "out", count=1, seed=3, sweep=sweep))
    first = _audio(tmp_path / "out")
    assert sorted(first) == [f"0000000003-steps{steps}-eta{eta}" for steps in (1, 2) for eta in (0, 1)]
    generate(_options(model, tmp_path / "out", count=2, seed=3, sweep=sweep))
    audio = _audio(tmp_path / "out")
    assert len(audio) == 8
    assert {name: audio[name] for name in first} == first
    row = _manifest(tmp_path / "out")["0000000004-steps2-eta1"]
    assert (row["seed"], row["steps"], row["eta"]) == (4, 2, 1.0)
    assert audio[row["id"]] == _made_by_the_core(model, [{"seed": 4, "steps": 2, "eta": 1}])[0]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (("steps",), "sweep steps: use NAME=VALUE,VALUE"),
        (("volume=1",), "sweep volume=1: use NAME=VALUE,VALUE"),
        (("steps=1,0",), "sweep steps=0: steps: input should be greater"),
        (("steps=1,1",), "sweep steps=1: stated twice"),
        (("steps=1", "eta=0,1,0.0"), "sweep steps=1 eta=0.0: stated twice"),
        (("steps=1", "steps=2"), "steps is swept twice"),
        rare(("width=32,17",), "sweep width=17: width 17: the network takes multiples"),
    ],
)
def test_a_wrong_sweep_is_refused(model: Path, tmp_path: Path, sweep: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(_options(model, tmp_path / "out", count=1, sweep=sweep))
    assert not (tmp_path / "out").exists()


def test_a_folder_is_varied_and_grows(model: Path, loops: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "sub dir").mkdir(parents=True)
    for name in ("b.flac", "sub dir/b.flac"):
        (source / name).symlink_to(loops / "loop_tabla.flac")
    (source / "notes.txt").write_text("not audio")
    options: dict[str, Any] = {"input_dir": str(source), "strength": 0.5, "steps": 2}
    generate(_options(model, out, **options))
    rows = _manifest(out)
    assert [name.rpartition("-")[0] for name in rows] == ["b", "sub_dir-b"]
    assert {row["source"] for row in rows.values()} == {str(source / "b.flac"), str(source / "sub dir" / "b.flac")}
    first = _times(out)
    (source / "a.flac").symlink_to(loops / "bass_hit_c.flac")
    generate(_options(model, out, **options))
    grown = _times(out)
    assert {file: grown[file] for file in first} == first
    assert len(_audio(out)) == 3
    (expected,) = _made_by_the_core(model, [{"kind": "vary", "source": str(source / "b.flac"), "steps": 2}])
    assert _audio(out)[next(iter(rows))] == expected
    generate(_options(model, tmp_path / "seeds", count=2, **options))
    assert sorted({row["seed"] for row in _manifest(tmp_path / "seeds").values()}) == [0, 1]
    (source / "b.flac").unlink()
    with pytest.raises(ValueError, match="holds the loop b-"):
        generate(_options(model, out, **options))


def test_loops_in_the_input_folder_are_not_varied(model: Path, take: str, tmp_path: Path) -> None:
    for name in ("in/take.flac", "in/loops/audio/0000000000.flac", "in/loops-of-others/take.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(take)
    options = _options(model, tmp_path / "in" / "loops", input_dir=str(tmp_path / "in"))
    loops = loop_rows(options, RequestCheck(load_outline(model)))
    assert loops.sources.keys() == {f"{tmp_path}/in/loops-of-others/take.flac", f"{tmp_path}/in/take.flac"}
    assert loops.count == 2


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a conditional model with random weights, and encodings."""
    folder = tmp_path_factory.mktemp("conditional")
    save_conditional(folder / "model", DIM)
    vectors = np.random.default_rng(0).standard_normal((2, DIM)).astype(np.float32)
    (folder / "encodings.parquet").write_bytes(encoded_table(["one.wav", "two.wav"], vectors, "e", "d"))
    return folder / "model", str(folder / "encodings.parquet")


def test_encodings_condition_loops(conditional: tuple[Path, str], tmp_path: Path) -> None:
    model, encodings = conditional
    vector = pq.read_table(encodings).to_pylist()[0]["encoding"]
    rows: list[dict[str, Any]] = [
        {"encoding": "one.wav", "guidance_scale": 2.0},
        {"encoding": vector, "guidance_scale": 2.0},
        {"encoding": "two.wav"},
        {},
    ]
    out = tmp_path / "out"
    generate(_options(model, out, requests=_file(tmp_path, rows), encodings=encodings, steps=2))
    one, same, two, none = _audio(out)["0000000001"], *(_audio(out)[f"000000000{n}"] for n in (2, 3, 4))
    assert one == same
    assert len({one, two, none}) == 3
    assert [same, none] == _made_by_the_core(model, [rows[1], {}], steps=2)
    manifest = _manifest(out)
    assert manifest["0000000001"]["encoding"] == "one.wav"
    assert manifest["0000000001"]["encoding_values"] == manifest["0000000002"]["encoding_values"] == vector
    assert manifest["0000000004"]["encoding_values"] is None
    generate(_options(model, tmp_path / "seeds", count=1, steps=2))
    assert _audio(tmp_path / "seeds")["0000000000"] == none


def test_rows_share_the_values_of_named_encodings(conditional: tuple[Path, str]) -> None:
    model, encodings = conditional[0], read_encodings(conditional[1])
    checks = RowChecks(RequestCheck(load_outline(model)), {}, encodings)
    stated = [0.1] * DIM
    one, same, own = checks.checked([{"encoding": "one.wav"}, {"encoding": "one.wav", "seed": 1}, {"encoding": stated}])
    for row in (one, same):
        assert isinstance(row.encoding, np.ndarray)
        assert np.shares_memory(row.encoding, encodings.vectors)
        assert row.values == encodings.vectors[0].tolist()
    assert own.values == np.array(stated, np.float32).tolist()


def test_wrong_encodings_are_refused(conditional: tuple[Path, str], model: Path, tmp_path: Path) -> None:
    own, encodings = conditional
    rows = [{"encoding": [1.0]}, {"encoding": "three.wav"}, {"encoding": [float(DIM)] * DIM}]
    with pytest.raises(
        ValueError, match=r"2 of 3 rows are bad .*: row 1: encoding: .*; row 2: .*no encoding for three"
    ):
        generate(_options(own, tmp_path / "out", requests=_file(tmp_path, rows), encodings=encodings))
    with pytest.raises(ValueError, match="the model is not conditional, omit them"):
        generate(_options(model, tmp_path / "out", requests=_file(tmp_path, [{}]), encodings=encodings))
    wide = tmp_path / "wide.parquet"
    wide.write_bytes(encoded_table(["a"], np.ones((1, 3), np.float32), "e", "d"))
    with pytest.raises(ValueError, match=f"hold vectors of 3 values, the model takes {DIM}"):
        generate(_options(own, tmp_path / "out", requests=_file(tmp_path, [{}]), encodings=str(wide)))
    assert not (tmp_path / "out").exists()


def test_rows_that_state_a_length_have_no_default_length(model: Path, take: str, tmp_path: Path) -> None:
    rows = [{}, {"width": 32}, {"kind": "vary", "source": take, "start_step": 0}]
    file = _file(tmp_path, rows)
    generate(_options(model, tmp_path / "out", requests=file, duration_s=2.5, strength=0.25, steps=1))
    manifest = list(_manifest(tmp_path / "out").values())
    assert manifest[0]["width"] > 32
    assert manifest[1]["width"] == 32
    assert (manifest[2]["strength"], manifest[2]["start_step"]) == (None, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"requests": "r.jsonl", "count": 1}, "requests with count"),
        ({"requests": "r.jsonl", "seed": 1}, "requests with seed"),
        ({"requests": "r.jsonl", "sweep": ("steps=1",)}, "requests with sweep"),
        ({}, "count, requests or input_dir is required"),
        ({"count": 1, "strength": 0.5}, "strength is for requests and input_dir"),
        ({"count": 1, "encodings": "e"}, "encodings is for requests"),
        ({"input_dir": "in", "sweep": ("steps=1",)}, "sweep with input_dir"),
        ({"count": 2_000_000, "best_of": 8}, "count 2000000 and best_of 8: 16,000,000 loops to generate, must be at"),
        (
            {"count": 2_000_000, "sweep": ("steps=1,2,3", "eta=0,1")},
            "count 2000000 with a sweep of 6 combinations: 12,000,000 loops to generate, must be at most 10,000,000",
        ),
    ],
)
def test_options_that_contradict_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateOptions(model="m", output_dir="o", **values)


def test_files_that_are_no_requests(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "twice.csv").write_text("seed,seed\n1,2\n")
    (tmp_path / "quoted.csv").write_text('seed\n"1\n')
    (tmp_path / "none.parquet").write_text("PAR1")
    (tmp_path / "rows.txt").write_text("{}")
    long = pa.table({"id": pa.array(["x" * (MAX_ROW_BYTES + 1)]).take(pa.array([0] * 3))})
    pq.write_table(long, tmp_path / "long.parquet")
    lists = pa.table({"sources": pa.array([["y" * 1_000_000] * 50] * 2)})
    pq.write_table(lists, tmp_path / "lists.parquet")
    pq.write_table(pa.table({"id": [{"a": "b"}]}), tmp_path / "nested.parquet")
    assert (tmp_path / "lists.parquet").stat().st_size < 2_000_000
    pq.write_table(pa.table({"seed": [number // 10 for number in range(10_000)]}), tmp_path / "damaged.parquet")
    content = bytearray((tmp_path / "damaged.parquet").read_bytes())
    content[100:200] = bytes(100)
    (tmp_path / "damaged.parquet").write_bytes(content)
    for name, message in {
        "lists.parquet": "column sources holds texts of more than",
        "nested.parquet": "has a column of the type struct",
        "empty.jsonl": "has no rows",
        "twice.csv": "two of one name",
        "quoted.csv": "is not CSV",
        "none.parquet": "requests .*none.parquet: ",
        "long.parquet": "column id holds texts of more than",
        "damaged.parquet": r"requests .*damaged.parquet: cannot read Parquet \(.*\): write the file again$",
        "rows.txt": "use a file with the extension",
        "missing.csv": "no such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            list(read_rows(str(tmp_path / name)))
    values = [number / 7 for number in range(20_000)]
    (tmp_path / "long.csv").write_text(f'encoding\n"{values}"\n')
    assert (tmp_path / "long.csv").stat().st_size > 300_000
    assert list(read_rows(str(tmp_path / "long.csv"))) == [{"encoding": values}]
    (tmp_path / "wide.csv").write_text("seed\n1,2\n")
    assert list(read_rows(str(tmp_path / "wide.csv"))) == ["row: has 2 cells, the first line names 1"]
