"""Lists of audio files: a text file with one name per line, or a Parquet file with a column of names.

A name is a URI, an absolute path, or a path relative to the folder of the list. Comments and quotes in text files are
not supported.
"""

import codecs
from collections.abc import Iterator
from pathlib import PurePosixPath
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.audio_files.parquet_rows import is_damage
from audiodiff_platform.storage import Folder

LIST_EXTENSIONS = frozenset({".txt", ".parquet"})
LIST_COLUMNS = ("uri", "url", "path", "audio_file", "file", "file_name")
MAX_LINE_CHARACTERS = 65_536

_BYTE_ORDER_MARK = "\ufeff"
# Longer byte order marks first: the mark of UTF-32-LE begins with the mark of UTF-16-LE.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def list_entries(folder: Folder, name: str) -> Iterator[str]:
    """Yield the entries of a list.

    Args:
        folder: The folder of the list.
        name: The file name of the list, with the extension .txt or .parquet.

    Raises:
        ValueError: The file is not a list, or is damaged.
    """
    if PurePosixPath(name).suffix.lower() == ".txt":
        yield from _lines(folder, name)
    else:
        yield from _column(folder, name)


def spellings(entry: str) -> list[str]:
    """Return the possible file names of a list entry, in the order in which they are tried.

    The order is: the entry itself, the entry without surrounding blanks, both texts with `/` for each backslash, and
    all of these in the composed and the decomposed form of Unicode. macOS names files in the decomposed form.
    """
    stripped = without_blanks(entry)
    if "://" in stripped:
        names = [stripped]
    else:
        separated = [name.replace("\\", "/") for name in (entry, stripped)]
        names = [str(PurePosixPath(name)) for name in (entry, stripped, *separated)]
    return list(dict.fromkeys([*names, *(normalize(form, name) for name in names for form in ("NFC", "NFD"))]))


def without_blanks(entry: str) -> str:
    """Strip surrounding blanks and byte order marks. A concatenation of lists has marks between entries."""
    return entry.strip().strip(_BYTE_ORDER_MARK).strip()


def _lines(folder: Folder, name: str) -> Iterator[str]:
    """Yield the nonempty lines of a text file.

    The encoding is UTF-8, or UTF-16 or UTF-32 if the file begins with a byte order mark of this encoding.
    """
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
                    raise ValueError(f"{place}: line {number} has {too_long}: write one file name per line")
                line.encode()  # raises UnicodeEncodeError for surrogates, which replace undecodable bytes
                if "\0" in line:
                    cause = "UTF-16 without a byte order mark, or not text"
                    raise ValueError(f"{place}: line {number} has NUL characters ({cause}): save the list as UTF-8")
                if line.strip():
                    yield line.removesuffix("\n")
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: line {number} is not {encoding}: save the list as UTF-8") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: is not {encoding} after line {number}: save the list as UTF-8") from error


def _column(folder: Folder, name: str) -> Iterator[str]:
    """Yield the names in a column of a Parquet file: the first of LIST_COLUMNS that is a text column."""
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
                    f"{place}: has neither an audio column nor a column of URIs ({known}); its columns are {columns}"
                )
            for batch in table.iter_batches(columns=[column]):
                yield from filter(None, batch.column(0).to_pylist())
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise
            raise ValueError(f"{place}: cannot read Parquet ({' '.join(str(error).split())})") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
