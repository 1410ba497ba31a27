"""What a model is conditioned on: a vector for each audio file.

Parquet        `audio_file` string, `encoding` list<float32>; the schema's metadata names the encoder and its digest. One file, or
               the folder that `encode` writes
the original's a pickled dict, file name -> tensor (1, n), which does not say what made it
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.mel_data.pickled_tensors import read_pickled
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.index import from_parquet

Vectors = npt.NDArray[np.float32]

ENCODER, ENCODER_DIGEST = b"audiodiff_encoder", b"audiodiff_encoder_digest"
ENCODINGS_VERSION = "encodings.parquet"
MAX_PICKLE_BYTES = 4 << 30
MAX_DIM = 16_384
MAX_VALUES = 2 << 30  # 8 GiB of vectors, which each process that trains holds
NAMED = 3  # missing files that an error names
_PARQUET_MAGIC = b"PAR1"
_PICKLE_MAGIC = b"\x80"


class Encodings:
    """A vector (dim,) for each audio file; `name` and `digest` of the encoder, None where the file does not say."""

    def __init__(self, audio_files: Iterable[str], vectors: Vectors, name: str | None, digest: str | None) -> None:
        self._rows = {audio_file: row for row, audio_file in enumerate(audio_files)}
        assert len(self._rows) == len(vectors), "each file has one vector"
        self.vectors, self.name, self.digest = vectors, name, digest
        self.version: bytes | None = None
        """The file that a run keeps, to go on with the same encodings when some are added: the index of their folder, if encode wrote it."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def audio_files(self) -> list[str]:
        return list(self._rows)

    @cached_property
    def content_digest(self) -> str:
        """Names what the vectors are, in whatever order and kind of file: 16 hex digits."""
        total = hashlib.sha256()
        for audio_file, row in sorted(self._rows.items()):
            total.update(f"{len(audio_file.encode())}:{audio_file}".encode())
            total.update(self.vectors[row].astype("<f4").tobytes())
        return total.hexdigest()[:16]

    def vectors_for(self, audio_files: Sequence[str]) -> Vectors:
        """(n, dim) float32, one for each of `audio_files`, as a mel dataset names them; raises ValueError that names those without one."""
        missing = sorted({audio_file for audio_file in audio_files if audio_file not in self._rows})
        if missing:
            more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
            raise ValueError(
                f"no encoding for {', '.join(missing[:NAMED])}{more}: encode the dataset that is trained on"
            )
        return self.vectors[[self._rows[audio_file] for audio_file in audio_files]]


def schema(name: str, digest: str) -> pa.Schema:
    """Of a Parquet file of encodings."""
    return pa.schema(
        [("audio_file", pa.string()), ("encoding", pa.list_(pa.float32()))],
        metadata={ENCODER: name.encode(), ENCODER_DIGEST: digest.encode()},
    )


def read_encodings(uri: str, run: Folder | None = None) -> Encodings:
    """The encodings at a path or URI: what encode finished, a Parquet file, or the original's pickle. No code of the file's is run.

    A run folder `run` may hold the version that its training began with, which is then read.
    Raises ValueError where there are none, or where they are damaged, of several sizes or encoders, or not finite.
    """
    folder = Folder(uri)
    if folder.is_folder():
        version = _version(folder, run)
        try:
            encodings = _read_parquet(uri, [(folder, part.path) for part in from_parquet(version)])
        except FileNotFoundError as error:
            raise ValueError(
                f"encodings {uri}: a part is missing ({error}): restore it, or encode into another folder"
            ) from error
        encodings.version = version
        return encodings
    parent, _, name = uri.rpartition("/")
    holder = Folder(parent or ("/" if uri.startswith("/") else "."))
    try:
        entry = holder.entry(name)
    except FileNotFoundError:
        raise ValueError(f"encodings {uri}: no such file or folder") from None
    with holder.filesystem.open(holder.path(name), "rb") as file:
        start = file.read(len(_PARQUET_MAGIC))
    if start == _PARQUET_MAGIC:
        return _read_parquet(uri, [(holder, name)])
    if start[:1] != _PICKLE_MAGIC:
        raise ValueError(f"encodings {uri}: is neither Parquet nor a pickle")
    if entry.size > MAX_PICKLE_BYTES:
        raise ValueError(f"encodings {uri}: a pickle of {entry.size:,} bytes, at most {MAX_PICKLE_BYTES:,} are read")
    try:
        return _stacked(read_pickled(holder.read(name)))
    except ValueError as error:
        raise ValueError(f"encodings {uri}: {error}") from error


def _version(folder: Folder, run: Folder | None) -> bytes:
    """The index of a folder that encode wrote, or the one that a run began with."""
    if run is not None and run.exists(ENCODINGS_VERSION):
        return run.read(ENCODINGS_VERSION)
    try:
        return commits.finished(folder)[2]
    except FileNotFoundError:
        raise ValueError(
            f"encodings {folder.uri}: not finished encodings (no {commits.SUCCESS}): run jobs/encode.py to its end"
        ) from None


def _stacked(found: dict[str, Vectors]) -> Encodings:
    sizes = sorted({len(vector) for vector in found.values()})
    if len(sizes) != 1:
        raise ValueError(f"holds vectors of {' and '.join(map(str, sizes)) or 'no'} values: all must have as many")
    vectors = np.stack(list(found.values()))
    if not np.isfinite(vectors).all():
        raise ValueError("holds vectors that are not finite")
    return Encodings(found, vectors, None, None)


def _read_parquet(uri: str, parts: Sequence[tuple[Folder, str]]) -> Encodings:
    try:
        return _joined(parts)
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"encodings {uri}: {' '.join(str(error).split())}") from error


def _joined(parts: Sequence[tuple[Folder, str]]) -> Encodings:
    audio_files: list[str] = []
    vectors: list[Vectors] = []
    encoders: set[tuple[str | None, str | None]] = set()
    values = 0
    for folder, name in parts:
        with folder.filesystem.open(folder.path(name), "rb") as file, pq.ParquetFile(file) as table:
            encoders.add(_encoder(table.schema_arrow))
            for names, block in _blocks(table):
                audio_files += names
                vectors.append(block)
                values += block.size
                if values > MAX_VALUES:
                    raise ValueError(f"holds more than {MAX_VALUES:,} values")
    sizes = {block.shape[1] for block in vectors}
    if len(sizes) != 1 or len(encoders) != 1:
        raise ValueError(
            f"holds vectors of {sorted(sizes) or 'no'} values by the encoders {sorted(map(str, encoders))}: one of each is taken"
        )
    if len(set(audio_files)) != len(audio_files):
        repeated = [name for name, count in Counter(audio_files).items() if count > 1]
        raise ValueError(f"holds several encodings of {', '.join(repeated[:NAMED])}")
    return Encodings(audio_files, np.concatenate(vectors), *encoders.pop())


def _encoder(stated: pa.Schema) -> tuple[str | None, str | None]:
    """Name and digest of the encoder that a file's metadata states, once its columns are seen to be right."""
    kinds = {field.name: field.type for field in stated}
    if not _is_list_of_floats(kinds.get("encoding")) or not _is_text(kinds.get("audio_file")):
        columns = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise ValueError(f"has the columns {columns}: audio_file string and encoding list<float> are taken")
    metadata = stated.metadata or {}
    name, digest = (
        metadata[key].decode(errors="replace") if key in metadata else None for key in (ENCODER, ENCODER_DIGEST)
    )
    return name, digest


def _is_list_of_floats(kind: pa.DataType | None) -> bool:
    if kind is None or not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        return False
    return bool(pa.types.is_floating(kind.value_type))


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _blocks(table: pq.ParquetFile) -> Iterator[tuple[list[str], Vectors]]:
    """File names with their vectors (n, dim), a few thousand at a time."""
    for batch in table.iter_batches(batch_size=4_096, columns=["audio_file", "encoding"]):
        names, column = batch.column("audio_file"), batch.column("encoding")
        if not batch.num_rows:
            continue
        values = column.flatten()
        dim = len(values) // batch.num_rows
        if (
            names.null_count
            or column.null_count
            or values.null_count
            or set(column.value_lengths().to_pylist()) != {dim}
            or not 1 <= dim <= MAX_DIM
        ):
            raise ValueError(f"holds empty cells, or vectors that do not all have as many values, 1 to {MAX_DIM}")
        vectors = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, dim)
        if not np.isfinite(vectors).all():
            raise ValueError("holds vectors that are not finite")
        yield names.to_pylist(), vectors


def encoded_table(audio_files: Sequence[str], vectors: Vectors, name: str, digest: str) -> bytes:
    """A Parquet file of encodings: `vectors` (n, dim), one for each of `audio_files`, by the encoder of that name and digest."""
    offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
    lists = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1)))
    buffer = io.BytesIO()
    pq.write_table(
        pa.table([pa.array(audio_files, pa.string()), lists], schema=schema(name, digest)), buffer, compression="zstd"
    )
    return buffer.getvalue()
