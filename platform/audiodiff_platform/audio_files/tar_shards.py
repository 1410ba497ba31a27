"""Audio files in tar archives (WebDataset shards).

Files are skipped by the same rules as in a folder. A first pass over the headers finds repeated names and the targets
of links. If several members have the same name, only the last is read, because `tar -x` also keeps only the last.
Members are never written to the paths in their names, which may lead out of the folder.
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
from audiodiff_platform.audio_files.source import IndivisibleError, Source, changed_error, hidden_kind, utf8

BLOCK_BYTES = 512
MAX_READ_BYTES = 1 << 20
MAX_LINKS_FOLLOWED = 40
MAX_PATH_LENGTH = 4_096
DANGLING, REPLACED, SPECIAL = "dangling link", "replaced in its archive", "special file"

# tarfile raises the errors after TarError for headers that are malformed, truncated or nested too deeply.
_HEADER_ERRORS = (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError)


def members(source: Source, local: Path, scratch: Path, skipped: Counter[str]) -> Iterator[AudioItem]:
    """Yield the audio files of an archive.

    The local file of a member exists only until the next member is requested.

    Args:
        source: The archive, or a part of it.
        local: The local file of the source.
        scratch: A local folder for the audio files. Each audio file overwrites the previous file.
        skipped: A counter of the skipped members by kind, which is updated.

    Yields:
        The audio files, named `ARCHIVE/MEMBER`.

    Raises:
        AudioDecodeError: The archive is damaged. The members before the damage are yielded first.
    """
    try:
        with _TarFile(io.FileIO(local) if source.part is None else PartFile(local, source.part)) as file:
            contents = _Contents.of(file)
            for archive, member in _headers(file):
                names = [*_own_name(member, contents, skipped), *contents.links.get(member.offset, ())]
                for name in names:
                    yield _item(source, name, archive, member, scratch)
            for name, target in contents.lost:
                reason = f"hard link to {utf8(target)}, which is not in the archive"
                yield AudioItem(_item_name(source, name), None, reason)
            skipped.update(contents.skipped)
    except _HEADER_ERRORS as error:
        if source.part is not None:  # only archives without damage are divided
            raise changed_error(source) from error
        reason = f"damaged archive, remaining members skipped ({' '.join(str(error).split())})"
        raise AudioDecodeError(source.uri, reason) from error


def member_starts(file: io.RawIOBase) -> Iterator[int]:
    """Yield the byte offsets at which an archive can be divided: the starts of its members.

    The start of a member is the start of its extended headers, if it has extended headers.

    Raises:
        IndivisibleError: The archive is damaged or its members depend on each other. Some offsets may already have
            been yielded.
    """
    names: set[int] = set()
    try:
        for archive, member in _headers(_TarFile(file)):
            name = _normal(member.name)
            if archive.pax_headers:
                raise IndivisibleError("global headers")
            if not member.isdir() and _is_audio(name):
                if member.issym() or member.islnk() or hash(name) in names:
                    raise IndivisibleError(f"{name} is a link or a repeated name")
                names.add(hash(name))
            yield member.offset
    except _HEADER_ERRORS as error:
        raise IndivisibleError(str(error)) from error


class _Archive(tarfile.TarFile):
    """tarfile.TarFile with a type annotation of `members`, its cache of headers."""

    members: list[tarfile.TarInfo]


class _TarFile(io.BufferedReader):
    """Tar file that rejects reads of more than MAX_READ_BYTES, such as headers with false sizes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_READ_BYTES:
            raise tarfile.ReadError(f"header of {size} bytes: at most {MAX_READ_BYTES}")
        return super().read(size)


@dataclass
class _Contents:
    """Results of the first pass over the headers. Members are identified by the offsets of their headers."""

    replaced: set[int] = field(default_factory=set)
    """Members that are followed by a member of the same name."""
    links: dict[int, list[str]] = field(default_factory=dict)
    """Names of the links to a member."""
    lost: list[tuple[str, str]] = field(default_factory=list)
    """Names and targets of hard links to missing members."""
    skipped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, file: _TarFile) -> "_Contents":
        """Read the headers of an archive."""
        contents = cls()
        last: dict[int, int] = {}  # keys are hashes of names, to save memory in archives of a million members
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
        """Find the targets of links to audio files.

        Several members may have the name that a link refers to. The target of a symbolic link is the last of these
        members. The target of a hard link is the last of these members before the link.
        """
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
    """Follow links to files and folders, and return the final path.

    Return an empty text if a target is absolute, a path is too long, or more than MAX_LINKS_FOLLOWED links follow each
    other.
    """
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
    """Remove path components from `remaining` until they form the path of a link; return the path.

    `remaining` holds the components in reverse order.
    """
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
    """Yield the headers before the first damaged header."""
    try:
        for _, member in _headers(file):
            yield member
    except _HEADER_ERRORS:
        return


def _headers(file: _TarFile) -> Iterator[tuple["_Archive", tarfile.TarInfo]]:
    """Yield the headers of all members, including those of concatenated archives (`cat a.tar b.tar`).

    Raise TarError if the file is truncated, or if an archive is followed by data that is not an archive.
    """
    size = file.seek(0, io.SEEK_END)
    start: int | None = file.seek(0)
    while start is not None:
        archive = _Archive.open(fileobj=file, mode="r:")
        while (member := archive.next()) is not None:
            archive.members.clear()  # the headers of a large archive would exhaust the memory
            if not member.offset < archive.offset <= size + BLOCK_BYTES:
                raise tarfile.ReadError("unexpected end of data")
            yield archive, member
        ended = int(archive.offset)
        start = _next_block(file, ended)
        if start == ended:
            raise tarfile.ReadError(f"no header at byte {ended}")


def _next_block(file: _TarFile, position: int) -> int | None:
    """Seek to the next block with nonzero bytes; return its offset, or None at the end of the file."""
    file.seek(position)
    while content := file.read(MAX_READ_BYTES):
        if kept := content.lstrip(b"\0"):
            start = position + (len(content) - len(kept)) // BLOCK_BYTES * BLOCK_BYTES
            return file.seek(start)
        position += len(content)
    return None


def _own_name(member: tarfile.TarInfo, contents: _Contents, skipped: Counter[str]) -> list[str]:
    """Return a list with the name of an audio file. Count any other member and return an empty list."""
    name = _normal(member.name)
    is_link = member.issym() or member.islnk()
    if member.isdir() or (is_link and _is_audio(name) and member.offset not in contents.replaced):
        return []  # a link is yielded together with its target
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
    """Extract a member to a file in `scratch`."""
    if member.issparse():
        reason = "sparse members are not supported: pack the file without --sparse"
        return AudioItem(_item_name(source, name), None, reason)
    content = archive.extractfile(member)
    assert content is not None, "a regular member has content"
    target = scratch / f"item{PurePosixPath(name).suffix.lower()}"
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)
    return AudioItem(_item_name(source, name), target)


def _item_name(source: Source, name: str) -> str:
    return f"{source.uri}/{utf8(name)}"


def _normal(name: str) -> str:
    """Return the name of a member as a relative path, without `./` and a leading `/`."""
    return str(PurePosixPath(name.lstrip("/")))


def _skipped_kind(name: str) -> str | None:
    """Return the kind of a member that is skipped because of its name, or None for an audio file."""
    if kind := hidden_kind(PurePosixPath(name)):
        return kind
    return None if PurePosixPath(name).suffix.lower() in AUDIO_EXTENSIONS else kind_of(name)


def _is_audio(name: str) -> bool:
    return _skipped_kind(name) is None
