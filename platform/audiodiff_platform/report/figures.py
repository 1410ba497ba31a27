"""Figures of a report about many loops: distributions, counts and distances."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audiodiff_platform.report.document import plural, table, text

BINS = 24
WIDE = 4.0
"""Largest range of a histogram above its median, in differences between the quartiles."""
MAX_KEYS = 24
DISTANCES = {
    "frechet": "Fréchet distance",
    "kernel": "Kernel distance",
    "density": "Density",
    "coverage": "Coverage",
    "nearest_candidate": "Distance to the nearest real slice",
    "nearer_share": "Nearer to the real slices than real audio",
}
"""Figures of evaluate that a report shows, in their order."""
PAIRED = frozenset(DISTANCES) - {"frechet"}
"""Figures that are computed from samples of both sides."""


def distribution(name: str, unit: str, values: Sequence[float], count: int) -> str:
    """Return a panel with the histogram, the median and the quartiles of a measurement.

    Args:
        name: Name of the measurement.
        unit: Unit, or empty.
        values: Values of the loops that have the measurement.
        count: Number of all loops.
    """
    numbers = np.asarray(values, np.float64)
    without = f", {count - len(numbers):,} without" if len(numbers) < count else ""
    if not len(numbers):
        return _panel(name, f"<p>None of {plural(count, 'loop')} has one.</p>")
    low, first, median, third, high = np.quantile(numbers, (0, 0.25, 0.5, 0.75, 1))
    end = min(high, median + WIDE * (third - first)) if third > first else high
    heights = np.histogram(np.clip(numbers, low, end), bins=BINS, range=(low, end if end > low else low + 1))[0]
    bars = "".join(
        f'<rect x="{10 * place + 1}" y="{60 - height:.1f}" width="8" height="{height:.1f}" rx="1.5"/>'
        for place, height in enumerate(60 * heights / heights.max())
        if height
    )
    label = f"{name}: median {median:.1f}, half of the loops between {first:.1f} and {third:.1f}"
    last = f"{end:.1f}" if end == high else f"{end:.1f} and more"
    return _panel(
        name,
        f'<p class="median">{median:.1f} <small>{text(unit)} median</small></p>'
        f'<svg viewBox="0 0 {10 * BINS} 60" preserveAspectRatio="none" role="img" aria-label="{text(label)}">'
        f"{bars}</svg>"
        f'<p class="axis"><span>{low:.1f}</span><span>{last}</span></p>'
        f"<p>Half between {first:.1f} and {third:.1f}; {plural(len(numbers), 'loop')}{without}</p>",
    )


def key_counts(keys: Counter[str], count: int) -> str:
    """Return a panel with the number of loops in each musical key, the most frequent first."""
    if not keys:
        return ""
    ranked = sorted(keys.items(), key=lambda item: (-item[1], item[0]))[:MAX_KEYS]
    items = "".join(f"<li>{text(key)} <small>{number:,}</small></li>" for key, number in ranked)
    without = count - keys.total()
    return _panel("Key", f'<ul class="keys">{items}</ul><p>{plural(keys.total(), "loop")}, {without:,} without</p>')


def distances(figures: Mapping[str, Any]) -> str:
    """Return a table of the figures of evaluate, with their intervals and sample sizes. Empty without figures."""
    rows: list[tuple[object, ...]] = []
    for name, title in DISTANCES.items():
        if name not in figures:
            continue
        low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
        interval = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
        real = figures.get(f"{name}_real_to_real", figures.get("nearest_real") if name == "nearest_candidate" else None)
        prefix = "n_paired_" if name in PAIRED and "n_paired_candidate" in figures else "n_"
        sizes = f"{_whole(figures, prefix + 'candidate')} generated, {_whole(figures, prefix + 'reference')} real"
        rows.append((title, f"{figures[name]:.4g}", interval, "" if real is None else f"{real:.4g}", sizes))
    if not rows:
        return ""
    return table(("figure", "value", "95 % interval", "real to real", "slices"), rows)


def frechet(figures: Mapping[str, Any]) -> str:
    """Return the Fréchet distance with its interval in a few words, or an empty text."""
    if "frechet" not in figures:
        return ""
    low, high = figures.get("frechet_low"), figures.get("frechet_high")
    interval = "" if low is None or high is None else f" ({low:.4g} to {high:.4g})"
    return f"Fréchet {figures['frechet']:.4g}{interval}, {_whole(figures, 'n_candidate')} generated slices"


def _whole(figures: Mapping[str, Any], name: str) -> str:
    return f"{figures[name]:,.0f}" if name in figures else "unknown number of"


def _panel(name: str, content: str) -> str:
    return f'<section class="panel"><h3>{text(name)}</h3>{content}</section>'
