"""Results of the portions of the evaluate job, which the driver receives as values or JSON files."""

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from audiodiff_core.evaluation import Items, Part, rank
from audiodiff_core.evaluation.features import Features
from audiodiff_core.evaluation.frechet import FeatureStatistics
from audiodiff_platform.audio_files import shortened


@dataclass
class Embedded:
    """The embedded items of a portion while it is processed, and the files that are left out.

    `features` and `round_trips` are batches (n, d). `tracks` and `ranks` have one entry per item.
    """

    side: str
    features: list[Features] = field(default_factory=list)
    tracks: list[str] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    round_trips: list[Features] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    silent: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Counts of files in containers that are not audio, by kind."""
    items_of: Counter[str] = field(default_factory=Counter)
    """The number of items of each track."""

    def add(self, track: str, features: list[Features], round_trips: list[Features]) -> None:
        """Add the next items of a track.

        Args:
            track: Name of the track.
            features: Features of the items, as batches (n, d).
            round_trips: Features of the items after their round trips through the vocoder, as batches (n, d).
        """
        count, first = sum(map(len, features)), self.items_of[track]
        self.features += features
        self.tracks += [track] * count
        self.ranks += [rank(track, number) for number in range(first, first + count)]
        self.items_of[track] += count
        self.round_trips += round_trips

    def result(self, sample_size: int) -> "Result":
        """Return the result of the portion, with the features of at most `sample_size` items."""
        features = _concatenated(self.features)
        after = _concatenated(self.round_trips)
        part = Part.of(Items(features, self.tracks), np.array(self.ranks, np.uint64), sample_size)
        return Result(self.side, part, features[: len(after)], after, self.unusable, self.silent, self.skipped)


@dataclass(frozen=True)
class Result:
    """The result of a portion.

    Args:
        side: Name of the side.
        part: Statistics of all items, and the items that the sample of the side may contain.
        before: Features (n, d) of the first items.
        after: Features (n, d) of the same items after their round trips through the vocoder.
        unusable: Name and reason of each file that cannot be used.
        silent: Number of silent files.
        skipped: Counts of files in containers that are not audio, by kind.
    """

    side: str
    part: Part
    before: Features
    after: Features
    unusable: list[str]
    silent: int
    skipped: Counter[str]

    def to_json(self) -> dict[str, Any]:
        """Convert the result to JSON values."""
        part, left_out = self.part, self.part.left_out
        return {
            "side": self.side,
            "features": _packed(part.items.features),
            "tracks": list(part.items.tracks),
            "ranks": _packed(part.ranks),
            "all_tracks": part.tracks,
            "left_out": left_out
            and {"count": left_out.count, "mean": _packed(left_out.mean), "moments": _packed(left_out.moments)},
            "before": _packed(self.before),
            "after": _packed(self.after),
            "unusable": self.unusable,
            "silent": self.silent,
            "skipped": shortened(self.skipped),
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Result":
        """Create a result from the JSON values of `to_json`."""
        left_out = values["left_out"]
        part = Part(
            Items(_unpacked(values["features"]), values["tracks"]),
            _unpacked(values["ranks"]),
            values["all_tracks"],
            left_out
            and FeatureStatistics(left_out["count"], _unpacked(left_out["mean"]), _unpacked(left_out["moments"])),
        )
        before, after = _unpacked(values["before"]), _unpacked(values["after"])
        return cls(
            values["side"], part, before, after, values["unusable"], values["silent"], Counter(values["skipped"])
        )


def _concatenated(batches: list[Features]) -> Features:
    """Return the rows of all batches (n, d), or an array of shape (0, 0) if there are no batches."""
    return np.concatenate(batches) if batches else np.empty((0, 0))


def _packed(array: npt.NDArray[Any]) -> dict[str, Any]:
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "base64": content}


def _unpacked(packed: Mapping[str, Any]) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"]).reshape(packed["shape"])
