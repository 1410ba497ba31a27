"""Counts of files that are not read, by kind: an extension, `none` for no extension, or words such as `hidden files`."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from audiodiff_core.audio import AUDIO_EXTENSIONS

KINDS_SHOWN = 20
_EXTENSION = re.compile(r"\.\w{1,10}")  # as opposed to the end of a title such as "No. 1 in C"
NO_EXTENSION = "none"
OTHER_KINDS = "other kinds"
_ARCHIVES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".zip", ".7z", ".rar")
_PLAYLISTS = (".m3u", ".m3u8", ".pls", ".xspf", ".cue")
_HINTS = {
    **dict.fromkeys(_ARCHIVES, "unpack it, or pack the files into a .tar without compression"),
    **dict.fromkeys(_PLAYLISTS, "write its file names to a .txt list, one a line"),
}


def kind_of(name: str) -> str:
    """The kind by which a file of this name is counted: its extension in lower case, both of `.tar.gz` and the like."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name.strip()).suffixes]
    if not suffixes or not _EXTENSION.fullmatch(suffixes[-1]):
        return NO_EXTENSION
    return "".join(suffixes[-2:] if suffixes[-2:-1] == [".tar"] else suffixes[-1:])


def shortened(skipped: Counter[str]) -> dict[str, int]:
    """The most frequent kinds with their counts; the rest is one count."""
    ordered = sorted(skipped.items(), key=lambda entry: (-entry[1], entry[0]))
    rest = sum(count for _, count in ordered[KINDS_SHOWN:])
    return dict(ordered[:KINDS_SHOWN]) | ({OTHER_KINDS: rest} if rest else {})


def skipped_in(records: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """The counts of what is not read in the containers of all shards."""
    return sum((Counter(record.get("skipped", {})) for record in records), Counter[str]())


def described(skipped: Counter[str]) -> str:
    """The counts for a person, with what to do about archives and playlists."""
    kinds = shortened(skipped)
    names = {NO_EXTENSION: "without extension"}
    counts = ", ".join(f"{count:,} {names.get(kind, kind)}" for kind, count in kinds.items())
    hints = "".join(f"; {kind}: {hint}" for kind, hint in _hints(kinds).items())
    return f"{skipped.total():,} others" + (f": {counts}" if counts else "") + hints


def refusal(name: str) -> str:
    """The reason why a single file that exists is not read, by its name."""
    kind = kind_of(name)
    what = "a file without an extension" if kind == NO_EXTENSION else f"a file of the extension {kind}"
    readable = " ".join(sorted(AUDIO_EXTENSIONS))
    hint = _hints({kind: 1}).get(kind, f"read are {readable}, .tar, .parquet and lists in .txt")
    return f"exists, and is {what}, which is not read: {hint}"


def _hints(kinds: Mapping[str, int]) -> dict[str, str]:
    return {kind: _HINTS[suffix] for kind in kinds if (suffix := PurePosixPath(f"x{kind}").suffix) in _HINTS}
