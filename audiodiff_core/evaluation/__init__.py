"""Comparison of generated items with real items: distances, coverage, and detection of copies."""

from audiodiff_core.evaluation.comparison import (
    MIN_ITEMS,
    closest,
    compare,
    evaluate_images,
    real_to_real,
    statistics_of,
)
from audiodiff_core.evaluation.gathering import MAX_SAMPLE_ITEMS, Gathered, Gathering, Items, Part, rank

__all__ = [
    "MAX_SAMPLE_ITEMS",
    "MIN_ITEMS",
    "Gathered",
    "Gathering",
    "Items",
    "Part",
    "closest",
    "compare",
    "evaluate_images",
    "rank",
    "real_to_real",
    "statistics_of",
]
