"""Input audio of jobs: files in a folder or on a list, and members of containers."""

from audiodiff_platform.audio_files.containers import items
from audiodiff_platform.audio_files.fetching import fetched
from audiodiff_platform.audio_files.inputs import Inputs
from audiodiff_platform.audio_files.item import AudioItem
from audiodiff_platform.audio_files.parts import in_parts
from audiodiff_platform.audio_files.ranges import source_sha256
from audiodiff_platform.audio_files.skipped import described, shortened, skipped_in
from audiodiff_platform.audio_files.source import ByteRange, Source

__all__ = [
    "AudioItem",
    "ByteRange",
    "Inputs",
    "Source",
    "described",
    "fetched",
    "in_parts",
    "items",
    "shortened",
    "skipped_in",
    "source_sha256",
]
