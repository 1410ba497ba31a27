"""Slices that are mostly padding: their count in commit records, their share of a dataset, and settings that avoid them."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from audiodiff_core.mel import MelConfig

MOSTLY = 0.5
NOTABLE_SHARE = 0.1
WIDTH_MULTIPLE = 32
"""Of suggested widths: every preset takes them."""
SHORTEST_HOP = 16


@dataclass
class Padding:
    """Slices that are more than half padding, of all `slices`: whole files by their duration in seconds, and the ends of longer files."""

    slices: int = 0
    files: Counter[str] = field(default_factory=Counter)
    tails: int = 0

    def add(self, piece: Mapping[str, Any], slice_s: float) -> None:
        """Count a slice (index, duration_s)."""
        self.slices += 1
        if piece["duration_s"] >= MOSTLY * slice_s:
            return
        if piece["index"]:
            self.tails += 1
        else:
            self.files[_rounded_down(piece["duration_s"])] += 1

    def record(self) -> dict[str, Any]:
        """The counts as JSON, for a commit record."""
        return {"slices": self.slices, "files": dict(sorted(self.files.items())), "tails": self.tails}

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Self:
        """The sum over commit records; shards made by earlier versions have no counts and are left out."""
        total = cls()
        for counts in (record["padding"] for record in records if "padding" in record):
            total.slices += counts["slices"]
            total.files.update(counts["files"])
            total.tails += counts["tails"]
        return total

    @property
    def share(self) -> float:
        """The share of slices that are more than half padding, in [0, 1]."""
        return (self.files.total() + self.tails) / max(1, self.slices)

    def advice(self, mel: MelConfig) -> str | None:
        """A line with the share and settings that lower it; None for a share of NOTABLE_SHARE or less."""
        if self.share <= NOTABLE_SHARE:
            return None
        count = self.files.total() + self.tails
        start = f"{100 * self.share:.0f} % of the slices ({count:,} of {self.slices:,}) are more than half padding"
        if self.tails > self.files.total():
            return f"{start}, most of them ends of files: use --tail drop"
        median_s = sorted(map(float, self.files.elements()))[self.files.total() // 2]
        options = " or ".join([*_settings_for(mel, median_s), "longer files"])
        return f"{start}: their files last {median_s:g} s (median), a slice lasts {mel.slice_duration_s:.3g} s; use {options}"


def _rounded_down(seconds: float) -> str:
    """Seconds to two significant digits, so that a record holds few different values."""
    if seconds <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return f"{math.floor(seconds / unit + 1e-9) * unit:.2g}"


def _settings_for(mel: MelConfig, seconds: float) -> Iterator[str]:
    """Options whose slices last `seconds` at most: a smaller width, a smaller hop, or both where neither is enough."""
    samples = round(seconds * mel.sample_rate)
    width = samples // mel.hop_length // WIDTH_MULTIPLE * WIDTH_MULTIPLE
    if width:
        yield f"--resolution {width},{mel.y_res}"
    if hop := _hop(samples, mel.x_res):
        yield f"--hop_length {hop}"
    if not width and not hop and (hop := _hop(samples, WIDTH_MULTIPLE)):
        yield f"--resolution {WIDTH_MULTIPLE},{mel.y_res} --hop_length {hop}"


def _hop(samples: int, width: int) -> int:
    """The largest power of two with which `width` frames last `samples` at most; 0 where it is less than SHORTEST_HOP."""
    hop = 1 << (samples // width).bit_length() >> 1
    return hop if hop >= SHORTEST_HOP else 0
