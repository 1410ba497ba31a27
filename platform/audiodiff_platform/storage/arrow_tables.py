"""Conversion of Python values to Arrow tables without importing pandas.

pyarrow imports pandas for the first list that it converts, which costs each process half a second.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Convert rows to a table, like `pa.Table.from_pylist`.

    Args:
        rows: The values of each row by column name. Numbers, text and bytes can be None.
        schema: The columns: numbers, text, bytes, and lists and structs of these.
    """
    return pa.Table.from_arrays(
        [_array([row[field.name] for row in rows], field.type) for field in schema], schema=schema
    )


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_struct(kind):
        children = [_array([value[field.name] for value in values], field.type) for field in kind]
        return pa.Array.from_buffers(kind, len(values), [None], children=children)
    if pa.types.is_list(kind):
        items = _array([item for value in values for item in value], kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [None, _offsets(values)], children=[items])
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        contents = [value.encode() if isinstance(value, str) else value or b"" for value in values]
        buffers = [_valid(values), _offsets(contents), pa.py_buffer(b"".join(contents))]
        return pa.Array.from_buffers(kind, len(values), buffers)
    valid = None
    if any(value is None for value in values):
        valid, values = _valid(values), [0 if value is None else value for value in values]
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(np.array(values, kind.to_pandas_dtype()))])


def _valid(values: Sequence[Any]) -> pa.Buffer:
    """Return the bits of the values that are not None."""
    return pa.py_buffer(np.packbits(np.array([value is not None for value in values], bool), bitorder="little"))


def _offsets(values: Sequence[Any]) -> pa.Buffer:
    """Return the start of each value in the joined values, and the end of the last value."""
    ends = np.cumsum([0, *map(len, values)])
    assert ends[-1] <= np.iinfo(np.int32).max, "more than 2 GiB in a column"
    return pa.py_buffer(ends.astype(np.int32))
