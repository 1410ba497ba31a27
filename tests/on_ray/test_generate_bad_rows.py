"""Files of requests with bad rows of every kind: all are named before weights are read, or skipped and listed."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.random_models import save_conditional

DIM = 8
NAN, INFINITY = float("nan"), float("inf")
Reasons = list[str | None]
"""For each row the beginning of the reason why it is bad, after `row N: `, or None for a good row."""


def _json_rows(folder: Path) -> tuple[str, Reasons]:
    rows: list[tuple[Any, str | None]] = [
        ({"id": "first"}, None),
        ({"stepz": 3}, "stepz: is unknown for the kind generate"),
        ({"steps": 0}, "steps: input should be greater than or equal to 1"),
        ({"kind": "vary", "source": "/none/there.wav"}, "source: /none/there.wav: no such file"),
        ({"encoding": [1.0, 2.0]}, f"encoding: of shape (2,): the model takes {DIM} finite numbers"),
        ({"encoding": []}, "encoding: "),
        ({"id": "first"}, "id: first is the id of row 1"),
        ({"kind": "hum"}, "kind: hum is unknown: use one of generate, vary, inpaint, extend, remix, invert, interp"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"eta": NAN}, "eta: input should be a finite number"),
        ({"guidance_scale": INFINITY}, "guidance_scale: input should be a finite number"),
        ({"encoding": [NAN] * DIM}, "encoding: input should be a finite number"),
        ({"bars": 2, "bpm": 120, "duration_s": 3}, "duration_s: 3 with bars: both state the length, set only one"),
        ({"bars": 2, "duration_s": 3}, "bars: 2 without bpm: set bpm too, or omit bars"),
        ({"seed": 7, "id": "last"}, None),
    ]
    file = folder / "requests.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row, _ in rows))
    return str(file), [reason for _, reason in rows]


def _csv_rows(folder: Path) -> tuple[str, Reasons]:
    rows: list[tuple[str, str | None]] = [
        ("first,1,,,,,,", None),
        ("a,one,,,,,,", "seed: input should be a valid integer, unable to parse string"),
        ("b,-1,,,,,,", "seed: input should be greater than or equal to 0"),
        ("c,1,2.5,,,,,", "steps: input should be a valid integer, unable to parse string"),
        ("d,1,0,,,,,", "steps: input should be greater than or equal to 1"),
        ("e,1,,nan,,,,", "eta: input should be a finite number"),
        ("First,1,,,,,,", "id: First is the id of row 1"),
        ("f,1,,,hum,,,", "kind: hum is unknown"),
        ("g,1,,,vary,/none/there.wav,,", "source: /none/there.wav: no such file"),
        ("h,1,,,vary,,,", "source: is required for the kind vary"),
        ("i,1,,,,,[1;2],", "encoding: is not a JSON list"),
        ('j,1,,,,,"[1, 2]",', f"encoding: of shape (2,): the model takes {DIM} finite numbers"),
        ("k,1,,,inpaint,/none/there.wav,,{}", "regenerate: input should be a valid tuple"),
        ("l,1,,,,,,,,", "row: has 10 cells, the first line names 8"),
        ("last,7,,,,,,", None),
    ]
    file = folder / "requests.csv"
    lines = ["id,seed,steps,eta,kind,source,encoding,regenerate", *(row for row, _ in rows)]
    file.write_text("".join(f"{line}\n" for line in lines))
    return str(file), [reason for _, reason in rows]


def _parquet_rows(folder: Path) -> tuple[str, Reasons]:
    rows: list[tuple[dict[str, Any], str | None]] = [
        ({"id": "first", "seed": "1"}, None),
        ({"seed": "one"}, "seed: input should be a valid integer, unable to parse string"),
        ({"steps": 2.5}, "steps: input should be a valid integer, got a number with a fractional part"),
        ({"steps": NAN}, "steps: input should be a finite number"),
        ({"eta": b"\xff"}, "eta: input should be a valid number"),
        ({"encoding": ["loud"] * DIM}, "encoding: input should be a valid number"),
        ({"kind": "vary", "source": 3}, "source: input should be a valid string"),
        ({"source": 3}, "source: is unknown for the kind generate"),
        ({"id": "last", "seed": "7", "steps": 2.0}, None),
    ]
    types = {
        "id": pa.string(),
        "seed": pa.string(),
        "steps": pa.float64(),
        "eta": pa.binary(),
        "encoding": pa.list_(pa.string()),
        "kind": pa.string(),
        "source": pa.int64(),
    }
    columns = {name: pa.array([row.get(name) for row, _ in rows], type_) for name, type_ in types.items()}
    pq.write_table(pa.table(columns), folder / "requests.parquet")
    return str(folder / "requests.parquet"), [reason for _, reason in rows]


FORMATS = {"jsonl": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows}


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a conditional model with random weights."""
    return save_conditional(tmp_path_factory.mktemp("conditional") / "model", DIM)


@pytest.mark.parametrize("extension", FORMATS)
def test_all_bad_rows_are_named_before_weights_are_read(
    conditional: Path, tmp_path: Path, command: Callable[..., tuple[int, str]], extension: str
) -> None:
    model = shutil.copytree(conditional, tmp_path / "model")
    (weights,) = model.rglob("*.safetensors")
    weights.write_bytes(b"these are no weights")
    file, reasons = FORMATS[extension](tmp_path)
    given = ("--model", model, "--output_dir", tmp_path / "out", "--requests", file)
    status, line = command(*given)
    bad = {number: reason for number, reason in enumerate(reasons, start=1) if reason is not None}
    assert status == 2
    before, _, listed = line.partition("use skip_bad): ")
    assert f"requests {file}: {len(bad)} of {len(reasons)} rows are bad (correct them, or " in before
    assert [int(number) for number in re.findall(r"(?:^|; )row (\d+): ", listed)] == list(bad)
    for number, reason in bad.items():
        assert f"row {number}: {reason}" in listed
    assert not (tmp_path / "out").exists()
    status, line = command(*given, "--skip_bad")
    assert (status, weights.name in line) == (2, True), line


@pytest.mark.parametrize("extension", FORMATS)
def test_bad_rows_are_skipped_and_listed_in_the_manifest(
    conditional: Path, tmp_path: Path, command: Callable[..., tuple[int, str]], extension: str
) -> None:
    out, (file, reasons) = tmp_path / "out", FORMATS[extension](tmp_path)
    given = ("--num_workers", 1, "--steps", 1)
    status, line = command("--model", conditional, "--output_dir", out, "--requests", file, "--skip_bad", *given)
    assert status == 0, line
    assert {file.name for file in (out / "audio").iterdir()} == {"first.wav", "last.wav"}
    rows = pq.read_table(out / "manifest").to_pylist()
    assert len(rows) == len(reasons)
    for number, (row, reason) in enumerate(zip(rows, reasons, strict=True), start=1):
        if reason is None:
            assert (row["reason"], row["path"]) == (None, f"audio/{row['id']}.wav")
        else:
            assert (row["id"], row["path"], row["sha256"]) == (f"{number:010d}", None, None)
            assert row["reason"].startswith(f"row {number}: {reason}")
