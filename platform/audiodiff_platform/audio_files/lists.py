"""Lists of audio files: a text file with a name a line, or Parquet with a column of names.

A name is a URI, an absolute path or a path relative to the list's folder. A text file has no comments and no quotes.
"""

import codecs
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.audio_files.parquet_rows import is_damage
from audiodiff_platform.storage import Folder

LIST_EXTENSIONS = frozenset({".txt", ".parquet"})
LIST_COLUMNS = ("uri", "url", "path", "audio_file", "file", "file_name")
MAX_LINE_CHARACTERS = 65_536

_BYTE_ORDER_MARK = "\ufeff"
# Byte order marks, the longer first: that of UTF-32 begins with that of UTF-16.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def listed(folder: Folder, name: str) -> Iterator[str]:
    """The entries of the list `name` in `folder`. Raises ValueError if the file is no list."""
    if PurePosixPath(name).suffix.lower() == ".txt":
        yield from _lines(folder, name)
    else:
        yield from _column(folder, name)


def spellings(entry: str) -> list[str]:
    """The names that an entry may mean: as it stands, without the blanks around it, with `/` for its backslashes."""
    stripped = without_blanks(entry)
    if "://" in stripped:
        return [stripped]
    separated = [name.replace("\\", "/") for name in (entry, stripped)]
    return list(dict.fromkeys(str(PurePosixPath(name)) for name in (entry, stripped, *separated)))


def without_blanks(entry: str) -> str:
    """An entry without blanks around it, and without the byte order mark of a list that was appended to another."""
    return entry.strip().strip(_BYTE_ORDER_MARK).strip()


def _lines(folder: Folder, name: str) -> Iterator[str]:
    """The lines of a text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; a line is in memory at a time."""
    place = f"input_dir {folder.uri}/{name}"
    with folder.filesystem.open(folder.path(name), "rb") as file:
        start = file.read(4)
    encoding = next((known for mark, known in _ENCODINGS.items() if start.startswith(mark)), "UTF-8")
    codec, errors = ("utf-8-sig", "surrogateescape") if encoding == "UTF-8" else (encoding, "surrogatepass")
    number = 0
    with folder.filesystem.open(folder.path(name), "r", encoding=codec, errors=errors) as text:
        try:
            while line := text.readline(MAX_LINE_CHARACTERS + 1):
                number += 1
                if len(line) > MAX_LINE_CHARACTERS:
                    too_long = f"more than {MAX_LINE_CHARACTERS:,} characters"
                    raise ValueError(f"{place}: line {number} has {too_long}: a list has a file name a line")
                line.encode()  # refuses what could not be decoded
                if "\0" in line:
                    cause = "UTF-16 without a byte order mark, or no text"
                    raise ValueError(f"{place}: line {number} holds NUL characters ({cause}): save the list as UTF-8")
                if line.strip():
                    yield line.removesuffix("\n")
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: line {number} is not {encoding}: save the list as UTF-8") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: is not {encoding} after line {number}: save the list as UTF-8") from error


def _column(folder: Folder, name: str) -> Iterator[str]:
    place = f"input_dir {folder.uri}/{name}"
    with folder.filesystem.open(folder.path(name), "rb") as file:
        try:
            table = pq.ParquetFile(file)
            strings = [field.name for field in table.schema_arrow if _is_text(field.type)]
            column = next((name for name in LIST_COLUMNS if name in strings), None)
            if column is None:
                columns = ", ".join(table.schema_arrow.names)
                known = ", ".join(LIST_COLUMNS)
                raise ValueError(
                    f"{place}: neither an audio column nor one of URIs ({known}); its columns are {columns}"
                )
            for batch in table.iter_batches(columns=[column]):
                yield from filter(None, batch.column(0).to_pylist())
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise
            raise ValueError(f"{place}: Parquet that cannot be read ({' '.join(str(error).split())})") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
