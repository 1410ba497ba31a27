"""The result of a portion of evaluate: while the worker embeds it, and as JSON values that go to the driver or into a file."""

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
    """A portion as it is embedded: features (n, d) and, of each item, track and rank; round trips; files that are left out."""

    side: str
    features: list[Features] = field(default_factory=list)
    tracks: list[str] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    round_trips: list[Features] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    silent: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Counts of what containers hold besides audio files."""
    items_of: Counter[str] = field(default_factory=Counter)
    """The number of items of each track."""

    def add(self, track: str, features: list[Features], round_trips: list[Features]) -> None:
        """Add features of the next items of a track, and those of their round trips."""
        count, first = sum(map(len, features)), self.items_of[track]
        self.features += features
        self.tracks += [track] * count
        self.ranks += [rank(track, number) for number in range(first, first + count)]
        self.items_of[track] += count
        self.round_trips += round_trips

    def result(self, at_most: int) -> "Result":
        """Return what is kept for a sample of `at_most` items of the side."""
        features = _rows(self.features)
        after = _rows(self.round_trips)
        part = Part.of(Items(features, self.tracks), np.array(self.ranks, np.uint64), at_most)
        return Result(self.side, part, features[: len(after)], after, self.unusable, self.silent, self.skipped)


@dataclass(frozen=True)
class Result:
    """The result of a portion: its part of the side, features of the first items and of their round trips, and the files left out."""

    side: str
    part: Part
    before: Features
    after: Features
    unusable: list[str]
    silent: int
    skipped: Counter[str]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
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
        """Return the result that `to_json` gave as JSON values."""
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


def _rows(batches: list[Features]) -> Features:
    """Features (n, d) of batches, (0, 0) of none."""
    return np.concatenate(batches) if batches else np.empty((0, 0))


def _packed(array: npt.NDArray[Any]) -> dict[str, Any]:
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "base64": content}


def _unpacked(packed: Mapping[str, Any]) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"]).reshape(packed["shape"])
