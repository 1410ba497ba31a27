"""Values of the measured features in a dataset.

They are read from the statistics in the footers of Parquet files (`MelDataset`), or from the columns
(`OriginalDataset`).
"""

import math
from collections.abc import Collection

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio.key_names import key_parts
from audiodiff_core.embeddings.measured import UNITS, ConditionName


class FeatureValues:
    """Values of a measured feature in a dataset, added part by part.

    Args:
        origin: The dataset, for error messages.
        name: Name of the feature.

    Attributes:
        slices: Number of slices that have the feature.
    """

    def __init__(self, origin: str, name: ConditionName) -> None:
        self._origin, self._name = origin, name
        self.slices = 0
        self._low, self._high = math.inf, -math.inf

    def add(self, slices: int, values: Collection[float | str]) -> None:
        """Add a part of the dataset.

        Args:
            slices: Number of slices of the part that have the feature.
            values: Values of these slices, among them the smallest and the largest.

        Raises:
            ValueError: A number is not finite, or a text is not the name of a key.
        """
        self.slices += slices
        for value in values:
            if isinstance(value, str):
                self._require_key(value)
            elif math.isfinite(value):
                self._low, self._high = min(self._low, value), max(self._high, value)
            else:
                raise ValueError(
                    f"{self._origin}: column {self._name} holds {value}: use null for slices without a {self._name}"
                )

    def add_statistics(self, footer: pq.FileMetaData) -> None:
        """Add all values of a Parquet file that prepare has written, by the statistics of its row groups.

        Statistics leave out NaN, which is no feature that prepare measures.
        """
        column = footer.schema.names.index(self._name)
        for group in range(footer.num_row_groups):
            statistics = footer.row_group(group).column(column).statistics
            self.add(statistics.num_values, (statistics.min, statistics.max) if statistics.has_min_max else ())

    def add_column(self, column: pa.ChunkedArray) -> None:
        """Add all values of a part of the column.

        Raises:
            ValueError: As `add`, or the column has another type.
        """
        kind, types = column.type, pa.types
        if self._name == "key":
            fits, needed = types.is_string(kind) or types.is_large_string(kind), "names of keys, such as F# minor"
        else:
            fits, needed = types.is_floating(kind) or types.is_integer(kind), f"numbers in {UNITS[self._name]}"
        if not (fits or types.is_null(kind)):
            raise ValueError(f"{self._origin}: column {self._name} is of type {kind}, must be {needed}")
        self.add(len(column) - column.null_count, column.drop_null().unique().to_pylist())

    def describe(self, rows: int) -> str:
        """Return the values as text for the console.

        Args:
            rows: Number of slices of the dataset.
        """
        spread = "" if self._name == "key" else f" ({self._low:.4g} to {self._high:.4g} {UNITS[self._name]})"
        return f"{self._name} of {self.slices:,} of {rows:,} slices{spread}"

    def _require_key(self, value: str) -> None:
        try:
            key_parts(value)
        except ValueError:
            raise ValueError(
                f"{self._origin}: column key holds {value!r}: use names of keys, such as F# minor or Bb major, "
                "and null for slices without a key"
            ) from None
