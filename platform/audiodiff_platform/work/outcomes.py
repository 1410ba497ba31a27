"""Results of attempts at shards, and the rows of Ray Data that hold them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

FILLER = np.zeros(1, np.uint8)
"""End of the content of a row, which thereby is never empty: tensors of Ray Data have elements."""


@dataclass(frozen=True, eq=False)
class Handover:
    """A shard between the two stages of a job.

    Args:
        facts: JSON values.
        content: The bytes (n,) of arrays.
    """

    facts: Mapping[str, Any]
    content: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Outcome:
    """The result of one attempt at a shard.

    Args:
        shard: Number of the shard.
        counts: Counts of the shard, if `kind` is "done".
        failure: One-line error message of a failure.
        kind: "done"; "handed over" between two stages; "storage" for a storage failure, which is retried; "lost" for a
            shard that killed too many processes, which is reported after the other shards; "error" for any other error,
            which ends the job.
        handover: What the second stage needs, if `kind` is "handed over".
    """

    shard: int
    counts: Mapping[str, Any]
    failure: str = ""
    kind: Literal["done", "handed over", "storage", "lost", "error"] = "done"
    handover: Handover | None = None

    def row(self) -> dict[str, Any]:
        """Return the row of an outcome that is not handed over."""
        fields = {"shard": self.shard, "counts": self.counts, "failure": self.failure, "kind": self.kind}
        return {"outcome": json.dumps(fields)}

    def row_between_stages(self) -> dict[str, Any]:
        """Return the row of any outcome, which has the same columns with a handover and without."""
        handover = self.handover or Handover({}, FILLER[:0])
        content = np.concatenate([handover.content, FILLER])
        return {**self.row(), "facts": json.dumps(handover.facts), "content": content}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return the outcome that a row holds."""
        fields = json.loads(row["outcome"])
        if fields["kind"] != "handed over":
            return cls(**fields)
        return cls(**fields, handover=Handover(json.loads(row["facts"]), row["content"][: -len(FILLER)]))
