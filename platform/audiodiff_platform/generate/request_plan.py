"""The plan of a generation: the requests of each shard, stored in the output folder, to which new requests are added.

_plan/NNNN.parquet          shard, id, request as JSON, values of its encoding, duration, reason of a bad row, origin of
                            an embedding
_plan/sources/NNNN.parquet  sources of the requests (`request_files.py`)
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import pyarrow as pa

from audiodiff_core.sampling import REQUEST
from audiodiff_core.sampling.requests import Request
from audiodiff_platform.audio_files import Source
from audiodiff_platform.generate.checked_rows import LoopRow
from audiodiff_platform.generate.loop_rows import LoopRows
from audiodiff_platform.generate.request_files import append_sources, require_unchanged
from audiodiff_platform.storage import Folder
from audiodiff_platform.work import plan_files
from audiodiff_platform.work.plan import ShardSize

PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("id", pa.string()),
        ("request", pa.string()),  # null for a bad row
        ("encoding", pa.list_(pa.float32())),  # empty without an encoding
        ("seconds", pa.float64()),
        ("reason", pa.string()),  # null for a loop to generate; with a request, why the quality gate rejected the loop
        # digest of the encoder that embedded the condition, and size and version of its file; null without a condition
        ("origin", pa.string()),
    ]
)
ROW_GROUP_ROWS = 1_024


@dataclass(frozen=True)
class PlannedLoop:
    """A loop of a shard.

    Args:
        id: Name of the loop.
        request: The request, which names its encoding or has none, or None for a bad row.
        encoding: Values of the encoding, or empty.
        reason: Description of a bad row, or why the quality gate rejected the loop.
    """

    id: str
    request: Request | None
    encoding: tuple[float, ...]
    reason: str | None

    @property
    def with_values(self) -> Request:
        """The request with the values of its encoding, which replace a reference or a condition."""
        assert self.request is not None, "a bad row has no request"
        values = {"encoding": self.encoding or None, "like": None, "prompt": None}
        return self.request.model_copy(update=values)


@dataclass(frozen=True)
class RequestPlan:
    """The shards of a generation, and the part of the plan that is not written yet.

    Args:
        folder: Output folder.
        shards: All shards.
        plan_file: The file with the new shards, or None.
        generation: Number of files of the plan.
        sources: Sources of the new shards that no earlier shard has.
    """

    folder: Folder
    shards: Mapping[int, ShardSize]
    plan_file: bytes | None
    generation: int
    sources: Sequence[Source] = ()

    def write(self) -> None:
        """Append the new shards to the plan."""
        if self.plan_file is not None:
            append_sources(self.folder, self.sources, self.generation)
            plan_files.append(self.folder, self.plan_file, self.generation)


def grown(folder: Folder, loops: LoopRows, shard_size: int) -> RequestPlan:
    """Compare the loops of a job with the plan of its folder, and plan the loops that are new.

    Args:
        folder: Output folder.
        loops: All loops of the job.
        shard_size: Number of loops of a new shard.

    Raises:
        ValueError: A planned loop or source has changed, or a planned loop is not among the loops of the job.
    """
    generation = plan_files.count(folder)
    planned = require_unchanged(folder, loops.sources, generation)
    shards: dict[int, ShardSize] = {}
    new = _new_rows(folder, loops, shards)
    first = next(new, None)
    if first is None:
        return RequestPlan(folder, shards, None, generation)
    rows = _assigned(chain([first], new), shard_size, shards)
    sources = [source for uri, source in loops.sources.items() if uri not in planned]
    return RequestPlan(folder, shards, plan_files.content(rows, PLAN_SCHEMA, ROW_GROUP_ROWS), generation, sources)


def shard_loops(folder: Folder, shard: int) -> list[PlannedLoop]:
    """Return the loops of a planned shard."""
    return [
        PlannedLoop(
            row["id"],
            None if row["request"] is None else REQUEST.validate_json(row["request"]),
            tuple(row["encoding"]),
            row["reason"],
        )
        for row in plan_files.shard_rows(folder, shard)
    ]


def _new_rows(folder: Folder, loops: LoopRows, shards: dict[int, ShardSize]) -> Iterator[LoopRow]:
    """Yield the loops after those of the plan, whose shards are added to `shards`."""
    planned = plan_files.all_rows(folder)
    if not loops.ordered:
        present = {loop.id: loop for loop in loops.rows}
        for number, row in enumerate(planned, start=1):
            _count(shards, row["shard"], row["seconds"])
            _require_same(folder, loops.origin, number, row, present.pop(row["id"], None))
        yield from present.values()
        return
    for number, (row, loop) in enumerate(zip_longest(planned, loops.rows), start=1):
        if row is None:
            assert loop is not None
            yield loop
        else:
            _count(shards, row["shard"], row["seconds"])
            _require_same(folder, loops.origin, number, row, loop)


def _assigned(loops: Iterable[LoopRow], size: int, shards: dict[int, ShardSize]) -> Iterator[dict[str, Any]]:
    """Yield the rows of new shards of `size` loops, which are added to `shards`."""
    first = max(shards, default=-1) + 1
    for number, loop in enumerate(loops):
        shard = first + number // size
        _count(shards, shard, loop.seconds)
        yield {
            "shard": shard,
            "id": loop.id,
            "request": loop.request,
            "encoding": loop.values,
            "seconds": loop.seconds,
            "reason": loop.reason,
            "origin": loop.origin,
        }


def _count(shards: dict[int, ShardSize], shard: int, seconds: float) -> None:
    size = shards.setdefault(shard, ShardSize())
    size.sources += 1
    size.seconds += seconds


def _require_same(folder: Folder, origin: str, number: int, planned: Mapping[str, Any], loop: LoopRow | None) -> None:
    """Require that a planned loop is the loop of the job. A row that was bad stays skipped, whatever it has become."""
    if loop is None:
        raise ValueError(
            f"{origin}: {folder.uri} holds the loop {planned['id']} (row {number}), which is not requested: "
            "request all earlier loops and more, or use another folder"
        )
    if planned["request"] is None or (
        (planned["id"], planned["request"], planned["reason"], planned["encoding"])
        == (loop.id, loop.request, loop.reason, loop.values)
    ):
        return
    stored, present = (
        _fields(planned["id"], planned["request"], planned["reason"]),
        _fields(loop.id, loop.request, loop.reason),
    )
    names = sorted(name for name in {*stored, *present} if stored.get(name) != present.get(name))
    differences = "; ".join(
        f"{name} is {stored.get(name)!r} in the folder, {present.get(name)!r} in this job" for name in names
    )
    if loop.request is None:
        differences = str(loop.reason)
    elif not differences:
        references = [f"{name} {present[name]}" for name in ("like", "prompt", "encoding") if name in present]
        differences = f"the encoding of {' '.join(references) or 'the row'} has other values"
    raise ValueError(
        f"{origin}: row {number} ({planned['id']}) of {folder.uri} has changed ({differences}): "
        "use another folder, or the same rows and more"
    )


def _fields(name: str, request: str | None, reason: str | None) -> dict[str, Any]:
    return {"id": name, "reason": reason, **(json.loads(request) if request is not None else {})}
