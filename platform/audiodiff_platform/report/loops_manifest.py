"""Contents of a folder of loops for its report: the first loops, and counts and measurements of all loops.

The manifest is read part by part. Memory holds the rows of at most MAX_LISTED loops, and 12 bytes for each other loop.
"""

import io
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from audiodiff_platform.storage import Folder

MAX_LISTED = 2_000
"""Largest number of loops on a page."""
MAX_LEFT_OUT = 100
"""Largest number of rejected or failed loops on a page."""
MAX_REASONS = 20
"""Largest number of kinds of reasons that are counted separately."""
PARTS_AT_ONCE = 64
REJECTED = "rejected:"
"""First word of the reason of a loop that was generated and not kept."""

Row = dict[str, Any]
UNLISTED_COLUMNS = frozenset({"encoding_values", "picture"})
NOT_PARAMETERS = frozenset(
    {
        *("id", "path", "audio", "picture_path", "sha256", "reason"),
        *("duration_s", "tempo_bpm", "tempo_confidence", "key", "seam_score", "level_db", *UNLISTED_COLUMNS),
    }
)
MEASUREMENTS = ("tempo_bpm", "level_db", "seam_score")


@dataclass
class LeftOut:
    """Loops without audio: the first of them, their number, and the number for each kind of reason."""

    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, loop_id: str, reason: str) -> None:
        """Add a loop."""
        self.count += 1
        if len(self.first) < MAX_LEFT_OUT:
            self.first.append((loop_id, reason))
        kind = re.sub(r"[-+]?\d[\d.,]*", "…", reason)  # reasons with other figures are of one kind
        self.reasons[kind if kind in self.reasons or len(self.reasons) < MAX_REASONS else "other reasons"] += 1


@dataclass
class Contents:
    """Contents of a folder of loops.

    Attributes:
        listed: Rows of the first loops with audio.
        count: Number of loops with audio.
        audio_s: Duration of all loops in seconds.
        measured: All values of each measurement. A loop without a tempo has no value.
        keys: Number of loops in each musical key.
        common: Values that all loops have in common, by column.
        rejected: Loops that were generated and not kept.
        failed: Loops that could not be generated.
    """

    listed: list[Row] = field(default_factory=list)
    count: int = 0
    audio_s: float = 0.0
    measured: dict[str, "array[float]"] = field(default_factory=lambda: {name: array("f") for name in MEASUREMENTS})
    keys: Counter[str] = field(default_factory=Counter)
    common: Row = field(default_factory=dict)
    rejected: LeftOut = field(default_factory=LeftOut)
    failed: LeftOut = field(default_factory=LeftOut)

    @classmethod
    def of(cls, folder: Folder) -> "Contents":
        """Read the manifest of a folder, in the order of its parts."""
        contents = cls()
        names = folder.names("manifest/*.parquet")
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            for start in range(0, len(names), PARTS_AT_ONCE):
                for part in pool.map(folder.read, names[start : start + PARTS_AT_ONCE]):
                    for row in _rows(part, with_pictures=contents.count < MAX_LISTED):
                        contents.add(row)
        return contents

    def add(self, row: Row) -> None:
        """Add a row of the manifest."""
        if row["path"] is None:
            reason = row["reason"] or ""
            if reason.startswith(REJECTED):
                self.rejected.add(row["id"], reason.removeprefix(REJECTED).strip())
            else:
                self.failed.add(row["id"], reason)
            return
        parameters = {name: value for name, value in row.items() if name not in NOT_PARAMETERS}
        if self.count:
            self.common = {name: value for name, value in self.common.items() if parameters.get(name) == value}
        else:
            self.common = parameters
        self.count += 1
        self.audio_s += row["duration_s"]
        for name, values in self.measured.items():
            if row[name] is not None:
                values.append(row[name])
        if key := row.get("key"):
            self.keys[key] += 1
        if len(self.listed) < MAX_LISTED:
            self.listed.append(row)

    def parameters(self, row: Row) -> Row:
        """Return the parameters of a loop that differ between loops. Nulls are left out."""
        return {
            name: value
            for name, value in row.items()
            if name not in NOT_PARAMETERS and name not in self.common and value is not None
        }


def _rows(part: bytes, *, with_pictures: bool) -> Iterator[Row]:
    """Yield the rows of a part of the manifest."""
    with pq.ParquetFile(io.BytesIO(part)) as file:
        left_out = UNLISTED_COLUMNS - ({"picture"} if with_pictures else set())
        columns = [name for name in file.schema_arrow.names if name not in left_out]
        yield from file.read(columns=columns, use_threads=False).to_pylist()
