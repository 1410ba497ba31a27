"""Lists of audio files: a text file with a URI a line, or Parquet with a column of URIs."""

from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.storage import Folder

LIST_EXTENSIONS = frozenset({".txt", ".parquet"})
LIST_COLUMNS = ("uri", "url", "path", "audio_file", "file", "file_name")


def listed(folder: Folder, name: str) -> Iterator[str]:
    """The entries of the list `name` in `folder`; raises ValueError where a Parquet file holds none."""
    with folder.filesystem.open(folder.path(name), "rb") as file:
        if PurePosixPath(name).suffix.lower() == ".txt":
            for line in file:
                text = line.decode().strip()
                if text and not text.startswith("#"):
                    yield text
            return
        table = pq.ParquetFile(file)
        strings = [field.name for field in table.schema_arrow if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
        column = next((known for known in LIST_COLUMNS if known in strings), None)
        if column is None:
            columns = ", ".join(table.schema_arrow.names)
            raise ValueError(f"input_dir {folder.uri}/{name}: neither an audio column nor one of URIs ({', '.join(LIST_COLUMNS)}); its columns are {columns}")
        for batch in table.iter_batches(columns=[column]):
            yield from filter(None, batch.column(0).to_pylist())
