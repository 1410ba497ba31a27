"""Columns of the slices of a mel dataset.

After the image, its origin and its reference level come features of the slice that are measured of its audio
(`audiodiff_core/loops/features.py`), null where they are not defined. prepare.json lists them as `measured`. Datasets
of earlier versions and of `--no-measure` have no such columns, and prepare continues them so (`UNMEASURED_SCHEMA`).
"""

import json
from collections.abc import Mapping
from dataclasses import fields

import pyarrow as pa

from audiodiff_core.loops.features import Features

MEASURED: tuple[str, ...] = tuple(field.name for field in fields(Features))
"""Names of the columns of measured features."""

SliceFeatures = Mapping[str, float | str | None]
"""Measured features of a slice by column."""

_SLICE_COLUMNS = {
    "audio_file": pa.string(),
    "slice": pa.int32(),
    "source_sha256": pa.string(),
    "start_s": pa.float64(),
    "duration_s": pa.float64(),
    "reference_db": pa.float32(),
}
_MEASURED_COLUMNS = {name: pa.string() if name == "key" else pa.float32() for name in MEASURED}
_DTYPES = {pa.string(): "string", pa.int32(): "int32", pa.float64(): "float64", pa.float32(): "float32"}


def _schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    values = {name: {"dtype": _DTYPES[kind], "_type": "Value"} for name, kind in columns.items()}
    features = {"image": {"_type": "Image"}, **values}
    return pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), *columns.items()],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


DATASET_SCHEMA = _schema(_SLICE_COLUMNS | _MEASURED_COLUMNS)
UNMEASURED_SCHEMA = _schema(_SLICE_COLUMNS)
