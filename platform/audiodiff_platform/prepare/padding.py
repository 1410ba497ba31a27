"""Statistics of slices that are mostly padding, and advice on settings that avoid them."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from audiodiff_core.mel import MelConfig

MIN_CONTENT = 0.5
"""Share of content below which a slice counts as mostly padding."""
NOTABLE_SHARE = 0.1
"""Share of mostly padded slices above which `Padding.advice` returns advice."""
WIDTH_MULTIPLE = 32
"""Suggested widths are multiples of this number, so that every preset supports them."""
MIN_HOP = 16
"""Smallest suggested hop length in samples."""


@dataclass
class Padding:
    """Counts of slices that are more than half padding.

    Args:
        slices: The number of all slices.
        files: The number of files that fill less than half of a single slice, by their duration in seconds.
        tails: The number of last slices of longer files that are more than half padding.
    """

    slices: int = 0
    files: Counter[str] = field(default_factory=Counter)
    tails: int = 0

    def add(self, piece: Mapping[str, Any], slice_s: float) -> None:
        """Count a slice.

        Args:
            piece: The `index` of the slice in its file, and the duration of its content in seconds as `duration_s`.
            slice_s: The duration of a slice in seconds.
        """
        self.slices += 1
        if piece["duration_s"] >= MIN_CONTENT * slice_s:
            return
        if piece["index"]:
            self.tails += 1
        else:
            self.files[_rounded_down(piece["duration_s"])] += 1

    def record(self) -> dict[str, Any]:
        """Return the counts as JSON for a commit record."""
        return {"slices": self.slices, "files": dict(sorted(self.files.items())), "tails": self.tails}

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Self:
        """Sum the counts of commit records. Records of earlier versions without counts are ignored."""
        total = cls()
        for counts in (record["padding"] for record in records if "padding" in record):
            total.slices += counts["slices"]
            total.files.update(counts["files"])
            total.tails += counts["tails"]
        return total

    @property
    def share(self) -> float:
        """The share of slices that are more than half padding, 0 to 1."""
        return (self.files.total() + self.tails) / max(1, self.slices)

    def advice(self, mel: MelConfig) -> str | None:
        """Return a line with the share and with settings that reduce it, or None for a small share.

        Args:
            mel: The mel configuration of the dataset.

        Returns:
            The line, or None if the share is at most NOTABLE_SHARE.
        """
        if self.share <= NOTABLE_SHARE:
            return None
        count = self.files.total() + self.tails
        start = f"{100 * self.share:.0f} % of the slices ({count:,} of {self.slices:,}) are more than half padding"
        if self.tails > self.files.total():
            return f"{start}, most of them ends of files: use --tail drop"
        median_s = sorted(map(float, self.files.elements()))[self.files.total() // 2]
        options = " or ".join([*_settings_for(mel, median_s), "longer files"])
        durations = f"their files last {median_s:g} s (median), a slice lasts {mel.slice_duration_s:.3g} s"
        return f"{start}: {durations}; use {options}"


def _rounded_down(seconds: float) -> str:
    """Round a duration down to two significant digits, so that a record has few distinct durations."""
    if seconds <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return f"{math.floor(seconds / unit + 1e-9) * unit:.2g}"


def _settings_for(mel: MelConfig, seconds: float) -> Iterator[str]:
    """Yield options that shorten the slices to at most `seconds`.

    The options set a smaller width or a smaller hop length, or both if neither suffices alone.
    """
    samples = round(seconds * mel.sample_rate)
    width = samples // mel.hop_length // WIDTH_MULTIPLE * WIDTH_MULTIPLE
    if width:
        yield f"--resolution {width},{mel.y_res}"
    if hop := _hop(samples, mel.x_res):
        yield f"--hop_length {hop}"
    if not width and not hop and (hop := _hop(samples, WIDTH_MULTIPLE)):
        yield f"--resolution {WIDTH_MULTIPLE},{mel.y_res} --hop_length {hop}"


def _hop(samples: int, width: int) -> int:
    """Return the largest hop length, a power of two, with which `width` frames span at most `samples`.

    Return 0 if this hop length is less than MIN_HOP.
    """
    hop = 1 << (samples // width).bit_length() >> 1
    return hop if hop >= MIN_HOP else 0
