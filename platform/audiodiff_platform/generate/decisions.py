"""Decisions about candidates in their order: which candidate is delivered, and why the others are not.

A place is a delivered loop. It has one candidate, or the `best_of` next candidates. The decisions about a candidate
depend on the candidates before it and on those of its place only, so that more candidates change no decision.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from audiodiff_core.evaluation.features import Features
from audiodiff_core.evaluation.pairs import distances
from audiodiff_platform.generate.gate import REJECTED
from audiodiff_platform.generate.gate_options import GateOptions

BEST = {"seam": ("seam_score", 1), "level": ("level_db", -1), "tempo": ("tempo_confidence", -1)}
"""Column of each measure of the best candidate, and the sign by which the best candidate has the lowest value."""


@dataclass(frozen=True)
class Candidate:
    """A measured candidate.

    Args:
        id: Name of the loop.
        reason: Why the candidate has no loop or is rejected by itself, or None.
        features: Features (d,), or None if no check compares loops.
        measure: Value of the measure of `best_by`; the lowest value is the best.
    """

    id: str
    reason: str | None
    features: Features | None
    measure: float


class _Neighbors:
    """Features to which features are added, with names."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._features: Features = np.empty((0, 0))

    def add(self, name: str, features: Features) -> None:
        """Add features (d,)."""
        count = len(self._names)
        if count == len(self._features):
            grown = np.empty((max(64, 2 * count), len(features)))
            if count:
                grown[:count] = self._features
            self._features = grown
        self._features[count] = features
        self._names.append(name)

    def nearest(self, features: Features) -> tuple[float, str]:
        """Return the distance from features (d,) to the nearest features and their name; infinite without any."""
        if not self._names:
            return np.inf, ""
        row = distances(features[np.newaxis], self._features[: len(self._names)])[0]
        nearest = int(row.argmin())
        return float(row[nearest]), self._names[nearest]


@dataclass
class Decisions:
    """Accumulator of decisions.

    Args:
        options: Options of the gate.
        wanted: Number of places to fill, or None to decide about all candidates.
    """

    options: GateOptions
    wanted: int | None
    reasons: list[str | None] = field(default_factory=list)
    """For each candidate in order, why it is not delivered, or None."""
    accepted: int = 0
    """Number of delivered loops."""
    _place: list[Candidate] = field(default_factory=list)
    _delivered: _Neighbors = field(default_factory=_Neighbors)

    @property
    def complete(self) -> bool:
        """True if all places are filled."""
        return self.wanted is not None and self.accepted >= self.wanted

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Decide about the next candidates. Candidates after the last place are left out."""
        for candidate in candidates:
            if self.complete:
                return
            self._place.append(candidate)
            if len(self._place) == self.options.per_place:
                self._decide()

    def _decide(self) -> None:
        """Decide about the candidates of a place."""
        reasons = [candidate.reason or self._duplicate(candidate) for candidate in self._place]
        passing = [candidate for candidate, reason in zip(self._place, reasons, strict=True) if reason is None]
        if passing:
            best = min(passing, key=lambda candidate: candidate.measure)
            reasons = [
                self._worse(candidate, best) if reason is None and candidate is not best else reason
                for candidate, reason in zip(self._place, reasons, strict=True)
            ]
            self.accepted += 1
            if best.features is not None:
                self._delivered.add(best.id, best.features)
        self.reasons += reasons
        self._place = []

    def _duplicate(self, candidate: Candidate) -> str | None:
        """Return the reason for the rejection of a duplicate of a delivered loop, or None."""
        if "duplicate" not in self.options.reject or candidate.features is None:
            return None
        distance, name = self._delivered.nearest(candidate.features)
        if distance >= (least := self.options.min_duplicate_distance):
            return None
        return f"{REJECTED}duplicate of {name} (distance {distance:.3g}, at least {least:g})"

    def _worse(self, candidate: Candidate, best: Candidate) -> str:
        column, sign = BEST[self.options.best_by]
        return f"{REJECTED}best_of ({column} {sign * candidate.measure:.3g}, {sign * best.measure:.3g} in {best.id})"
