"""Comparison of generated items with real ones: statistics and a sample of each side, and figures with their intervals."""

from audiodiff_core.evaluation.comparison import (
    ITEMS_AT_LEAST,
    closest,
    compare,
    evaluate_images,
    real_to_real,
    statistics_of,
)
from audiodiff_core.evaluation.gathering import SAMPLED_AT_MOST, Gathered, Gathering, Items, Part, rank

__all__ = [
    "ITEMS_AT_LEAST",
    "SAMPLED_AT_MOST",
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
