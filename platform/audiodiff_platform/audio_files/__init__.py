"""Audio files that a job reads: a folder, a list, or containers of many files."""

from audiodiff_platform.audio_files.containers import items
from audiodiff_platform.audio_files.fetching import fetched
from audiodiff_platform.audio_files.inputs import Inputs
from audiodiff_platform.audio_files.item import Item
from audiodiff_platform.audio_files.skipped import described, shortened, skipped_in
from audiodiff_platform.audio_files.source import Source

__all__ = ["Inputs", "Item", "Source", "described", "fetched", "items", "shortened", "skipped_in"]
