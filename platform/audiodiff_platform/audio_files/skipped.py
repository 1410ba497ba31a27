"""Counts of skipped files by kind: an extension, `none`, or a text such as `hidden files`."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from audiodiff_core.audio import AUDIO_EXTENSIONS

KINDS_SHOWN = 20
_EXTENSION = re.compile(r"\.\w{1,10}")  # does not match the end of a title such as "No. 1 in C"
NO_EXTENSION = "none"
OTHER_KINDS = "other kinds"
_ARCHIVES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".zip", ".7z", ".rar")
_PLAYLISTS = (".m3u", ".m3u8", ".pls", ".xspf", ".cue")
_HINTS = {
    **dict.fromkeys(_ARCHIVES, "unpack it, or pack the files into a .tar without compression"),
    **dict.fromkeys(_PLAYLISTS, "write its file names to a .txt list, one per line"),
}


def kind_of(name: str) -> str:
    """Return the kind of a file: its extension in lower case (`.tar.gz` for `a.tar.gz`), or NO_EXTENSION."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name.strip()).suffixes]
    if not suffixes or not _EXTENSION.fullmatch(suffixes[-1]):
        return NO_EXTENSION
    return "".join(suffixes[-2:] if suffixes[-2:-1] == [".tar"] else suffixes[-1:])


def shortened(skipped: Counter[str]) -> dict[str, int]:
    """Return the counts of the KINDS_SHOWN most frequent kinds, and the sum of all other counts."""
    ordered = sorted(skipped.items(), key=lambda entry: (-entry[1], entry[0]))
    rest = sum(count for _, count in ordered[KINDS_SHOWN:])
    return dict(ordered[:KINDS_SHOWN]) | ({OTHER_KINDS: rest} if rest else {})


def skipped_in(records: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Sum the counts of skipped files in commit records."""
    return sum((Counter(record.get("skipped", {})) for record in records), Counter[str]())


def described(skipped: Counter[str]) -> str:
    """Format counts of skipped files as one line, with advice for archives and playlists."""
    kinds = shortened(skipped)
    names = {NO_EXTENSION: "without extension"}
    counts = ", ".join(f"{count:,} {names.get(kind, kind)}" for kind, count in kinds.items())
    hints = "".join(f"; {kind}: {hint}" for kind, hint in _hints(kinds).items())
    return f"{skipped.total():,} others" + (f": {counts}" if counts else "") + hints


def refusal(name: str) -> str:
    """Return the reason why a single input file with this name is not read."""
    kind = kind_of(name)
    problem = "it has no extension" if kind == NO_EXTENSION else f"the extension {kind} is not supported"
    supported = " ".join(sorted(AUDIO_EXTENSIONS))
    hint = _hints({kind: 1}).get(kind, f"supported are {supported}, .tar, .parquet and .txt lists")
    return f"exists, but {problem}: {hint}"


def _hints(kinds: Mapping[str, int]) -> dict[str, str]:
    """Return advice by kind, for the kinds that are archives or playlists."""
    return {kind: _HINTS[suffix] for kind in kinds if (suffix := PurePosixPath(f"x{kind}").suffix) in _HINTS}
