"""Audio files in tar archives (WebDataset shards), by the rules for a folder.

A first pass over the headers finds names that occur twice, of which the last counts as in `tar -x`, and the targets of
links. Names are names only: no member is written to where its name says.
"""

import io
import posixpath
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from audiodiff_core.audio import AUDIO_EXTENSIONS, AudioDecodeError
from audiodiff_platform.audio_files.item import AudioItem
from audiodiff_platform.audio_files.ranges import PartFile
from audiodiff_platform.audio_files.skipped import kind_of
from audiodiff_platform.audio_files.source import IndivisibleError, Source, changed, passed_over, utf8

BLOCK_BYTES = 512
MAX_READ_BYTES = 1 << 20
MAX_LINKS_FOLLOWED = 40
MAX_PATH_LENGTH = 4_096
DANGLING, REPLACED, SPECIAL = "dangling link", "replaced in its archive", "special file"

# tarfile raises those after TarError for headers that are no numbers, that end early or that extend each other endlessly.
_UNREADABLE = (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError)


def members(source: Source, local: Path, scratch: Path, skipped: Counter[str]) -> Iterator[AudioItem]:
    """The audio files of an archive, each in a file that the next one replaces; other members count in `skipped`."""
    try:
        with _TarFile(io.FileIO(local) if source.part is None else PartFile(local, source.part)) as file:
            contents = _Contents.of(file)
            for archive, member in _headers(file):
                names = [*_own_name(member, contents, skipped), *contents.links.get(member.offset, ())]
                for name in names:
                    yield _item(source, name, archive, member, scratch)
            for name, target in contents.lost:
                reason = f"a hard link to {utf8(target)}, which its archive does not hold"
                yield AudioItem(_item_name(source, name), None, reason)
            skipped.update(contents.skipped)
    except _UNREADABLE as error:
        if source.part is not None:  # an archive is divided only if all its headers can be read
            raise changed(source) from error
        reason = f"archive that cannot be read on ({' '.join(str(error).split())})"
        raise AudioDecodeError(source.uri, reason) from error


def member_starts(file: io.RawIOBase) -> Iterator[int]:
    """The places at which an archive can be divided: where members with their extended headers begin.

    Raises IndivisibleError, also after some places, for an archive whose members depend on each other, or that is damaged.
    """
    names: set[int] = set()
    try:
        for archive, member in _headers(_TarFile(file)):
            name = _normal(member.name)
            if archive.pax_headers:
                raise IndivisibleError("headers of the whole archive")
            if not member.isdir() and _is_audio(name):
                if member.issym() or member.islnk() or hash(name) in names:
                    raise IndivisibleError(f"{name} is a link or occurs twice")
                names.add(hash(name))
            yield member.offset
    except _UNREADABLE as error:
        raise IndivisibleError(str(error)) from error


class _Archive(tarfile.TarFile):
    """A tar archive, which keeps the headers that it has read in `members`."""

    members: list[tarfile.TarInfo]


class _TarFile(io.BufferedReader):
    """A tar file of which a megabyte is read at most at once: extended headers state sizes of their own."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


@dataclass
class _Contents:
    """The findings of the pass over the headers; members are known by the offset of their header."""

    replaced: set[int] = field(default_factory=set)
    links: dict[int, list[str]] = field(default_factory=dict)
    """The names of the links to a member."""
    lost: list[tuple[str, str]] = field(default_factory=list)
    """Hard links to members that are not there, with their targets."""
    skipped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, file: _TarFile) -> "_Contents":
        contents = cls()
        last: dict[int, int] = {}  # by the hash of the name: an archive may have a million members
        links: dict[str, _Link] = {}
        for member in _readable_headers(file):
            name = _normal(member.name)
            links.pop(name, None)
            if member.issym():
                target = posixpath.join(posixpath.dirname(name), member.linkname)
                links[name] = _Link(target, is_hard=False)
            elif member.islnk():
                links[name] = _Link(_normal(member.linkname), is_hard=True)
            if not member.isdir() and _is_audio(name):
                if (before := last.get(hash(name))) is not None:
                    contents.replaced.add(before)
                last[hash(name)] = member.offset
        if any(map(_is_audio, links)):
            contents._resolve(links, file)
        return contents

    def _resolve(self, links: Mapping[str, "_Link"], file: _TarFile) -> None:
        """Finds the members that audio files are links to: the last of that name, for a hard link the last before it."""
        ends = {name: _end(name, links) for name in links if _is_audio(name)}
        wanted = set(ends.values())
        targets: dict[str, int] = {}
        hard: dict[str, int] = {}
        for member in _readable_headers(file):
            name = _normal(member.name)
            if member.isreg() and name in wanted:
                targets[name] = member.offset
            elif member.islnk() and ends.get(name) in targets:
                hard[name] = targets[ends[name]]
        for name, end in ends.items():
            target = hard.get(name, targets.get(end))
            if target is not None:
                self.links.setdefault(target, []).append(name)
            elif links[name].is_hard:
                self.lost.append((name, links[name].target))
            else:
                self.skipped[DANGLING] += 1


@dataclass(frozen=True)
class _Link:
    target: str
    is_hard: bool


def _end(name: str, links: Mapping[str, _Link]) -> str:
    """The path that a link leads to, over links to files and to folders; empty if it leads to no place in the archive."""
    remaining: list[str] = []
    path = name
    for _ in range(MAX_LINKS_FOLLOWED):
        target = links[path].target
        if target.startswith("/") or len(target) + sum(map(len, remaining)) + len(remaining) > MAX_PATH_LENGTH:
            return ""
        remaining += reversed(target.split("/"))
        path = _next_link(remaining, links)
        if path not in links:
            return path
    return ""


def _next_link(remaining: list[str], links: Mapping[str, _Link]) -> str:
    """Take the parts of a path from the end of `remaining` up to the first link; return the path that they form."""
    reached: list[str] = []
    path = ""
    while remaining:
        part = remaining.pop()
        if part == ".." and reached and reached[-1] != "..":
            reached.pop()
        elif part not in ("", "."):
            reached.append(part)
        path = "/".join(reached)
        if path in links:
            break
    return path


def _readable_headers(file: _TarFile) -> Iterator[tarfile.TarInfo]:
    """The headers up to the first that cannot be read."""
    try:
        for _, member in _headers(file):
            yield member
    except _UNREADABLE:
        return


def _headers(file: _TarFile) -> Iterator[tuple["_Archive", tarfile.TarInfo]]:
    """All members, also of archives behind the first (`cat a.tar b.tar`). Raises TarError if anything else follows."""
    size = file.seek(0, io.SEEK_END)
    start: int | None = file.seek(0)
    while start is not None:
        archive = _Archive.open(fileobj=file, mode="r:")
        while (member := archive.next()) is not None:
            archive.members.clear()  # or the headers of a large archive would fill the memory
            if not member.offset < archive.offset <= size + BLOCK_BYTES:
                raise tarfile.ReadError("unexpected end of data")
            yield archive, member
        ended = int(archive.offset)
        start = _next_block(file, ended)
        if start == ended:
            raise tarfile.ReadError(f"no header at byte {ended}")


def _next_block(file: _TarFile, position: int) -> int | None:
    """Where the first block that is not all zeros begins, with the file there; None if there is none."""
    file.seek(position)
    while content := file.read(MAX_READ_BYTES):
        if kept := content.lstrip(b"\0"):
            start = position + (len(content) - len(kept)) // BLOCK_BYTES * BLOCK_BYTES
            return file.seek(start)
        position += len(content)
    return None


def _own_name(member: tarfile.TarInfo, contents: _Contents, skipped: Counter[str]) -> list[str]:
    """The name by which a member is an audio file, if it is one; counts it if it is none."""
    name = _normal(member.name)
    is_link = member.issym() or member.islnk()
    if member.isdir() or (is_link and _is_audio(name) and member.offset not in contents.replaced):
        return []  # a link has its item where its target is
    if kind := _skipped_kind(name):
        skipped[kind] += 1
    elif member.offset in contents.replaced:
        skipped[REPLACED] += 1
    elif not member.isreg():
        skipped[SPECIAL] += 1
    else:
        return [name]
    return []


def _item(source: Source, name: str, archive: "_Archive", member: tarfile.TarInfo, scratch: Path) -> AudioItem:
    if member.issparse():
        return AudioItem(
            _item_name(source, name), None, "stored with holes (a sparse member): pack it without --sparse"
        )
    content = archive.extractfile(member)
    assert content is not None, "a regular member has content"
    target = scratch / f"item{PurePosixPath(name).suffix.lower()}"
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)
    return AudioItem(_item_name(source, name), target)


def _item_name(source: Source, name: str) -> str:
    return f"{source.uri}/{utf8(name)}"


def _normal(name: str) -> str:
    """A member's name as a folder would have it: without `./` and a leading `/`."""
    return str(PurePosixPath(name.lstrip("/")))


def _skipped_kind(name: str) -> str | None:
    if kind := passed_over(PurePosixPath(name)):
        return kind
    return None if PurePosixPath(name).suffix.lower() in AUDIO_EXTENSIONS else kind_of(name)


def _is_audio(name: str) -> bool:
    return _skipped_kind(name) is None
