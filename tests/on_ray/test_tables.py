"""Tables made from Python values equal pyarrow's own, without an import of pandas."""

import subprocess
import sys

import pyarrow as pa
import pytest

from audiodiff_platform.mel_data.slice_schema import DATASET_SCHEMA
from audiodiff_platform.prepare.worker import QUARANTINE_SCHEMA
from audiodiff_platform.storage.arrow_tables import table
from audiodiff_platform.work import plan

PLANNED = [
    {"shard": 0, "uri": "a.wav", "size": 1 << 40, "version": "1", "left_out": [], "start": 0, "stop": 0},
    {
        "shard": 7,
        "uri": "ä/ö 音.ogg",
        "size": 0,
        "version": "",
        "left_out": ["x/1.wav", "", "x/ß.wav"],
        "start": 0,
        "stop": 1 << 40,
    },
]
SLICES = [
    {
        "image": {"bytes": bytes([index] * index), "path": None},
        "audio_file": f"a{'é' * index}.wav",
        "slice": index,
        "source_sha256": "0" * 64,
        "start_s": index / 3,
        "duration_s": 5.0,
        "reference_db": -index / 7,
        "tempo": None if index % 3 else 60 + index / 7,
        "key": None if index % 2 else "F# minor",
        "loudness": -20.0,
        "brightness": None,
    }
    for index in range(130)
]


@pytest.mark.parametrize(
    ("rows", "schema"),
    [
        (PLANNED, plan.PLAN_SCHEMA),
        (SLICES, DATASET_SCHEMA),
        ([{"audio_file": "a", "reason": "b", "size": 3}], QUARANTINE_SCHEMA),
        ([], plan.PLAN_SCHEMA),
        ([{"a": None}, {"a": "b"}], pa.schema([("a", pa.string())])),
    ],
    ids=["plan", "slices", "quarantine", "nothing", "none"],
)
def test_a_table_is_pyarrows(rows: list[dict[str, object]], schema: pa.Schema) -> None:
    made = table(rows, schema)
    made.validate(full=True)
    assert made.equals(pa.Table.from_pylist(rows, schema), check_metadata=True)


def test_pandas_is_not_imported() -> None:
    code = (
        "import sys\nfrom audiodiff_platform.prepare.worker import QUARANTINE_SCHEMA\n"
        "from audiodiff_platform.storage.arrow_tables import table\n"
        "table([{'audio_file': 'a', 'reason': 'b', 'size': 3}], QUARANTINE_SCHEMA)\nprint('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
