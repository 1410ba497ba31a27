"""Encodings: one vector per audio file, on which a conditional model is trained.

Two formats are read:

- Parquet with the columns `audio_file` (string) and `encoding` (list<float32>), in one file or in the folder that
  encode writes. The metadata of the schema states the name and the digest of the encoder.
- The pickle of the original audio-diffusion project, which maps file names to tensors (1, n). It does not state the
  encoder.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.audio_files.parquet_rows import is_damage
from audiodiff_platform.mel_data.mel_dataset import Place, TrainingImages
from audiodiff_platform.mel_data.pickled_tensors import read_pickled
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.index import from_parquet

Vectors = npt.NDArray[np.float32]

ENCODER, ENCODER_DIGEST = b"audiodiff_encoder", b"audiodiff_encoder_digest"
ENCODINGS_VERSION = "encodings.parquet"
MAX_PICKLE_BYTES = 4 << 30
MAX_DIM = 16_384
MAX_VALUES = 2 << 30  # 8 GiB of vectors, which each training process holds in memory
MAX_NAMED_FILES = 3  # in an error message
_PARQUET_MAGIC = b"PAR1"
_PICKLE_MAGIC = b"\x80"


class SliceEncodings(Protocol):
    """Encodings of the slices of a dataset, on which a conditional model is trained."""

    @property
    def dim(self) -> int:
        """Number of values of an encoding."""

    def at(self, dataset: TrainingImages, places: Sequence[Place]) -> Vectors:
        """Return the encodings (n, dim) of slices by their places in a dataset."""


class Encodings:
    """Encodings of audio files.

    Args:
        audio_files: Names of the files, each once.
        vectors: Encodings (n, dim) in the order of `audio_files`.
        name: Name of the encoder, or None if it is unknown.
        digest: Digest of the encoder's weights, or None if it is unknown.
    """

    def __init__(self, audio_files: Iterable[str], vectors: Vectors, name: str | None, digest: str | None) -> None:
        self._rows = {audio_file: row for row, audio_file in enumerate(audio_files)}
        assert len(self._rows) == len(vectors), "each file must have one vector"
        self.vectors, self.name, self.digest = vectors, name, digest
        self.version: bytes | None = None
        """Index of the folder that encode wrote, or None for a single file.

        A training run keeps the index, so that the run continues with the same encodings after others are added.
        """

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
        """Digest of names and vectors as 16 hex digits.

        The digest does not depend on the order of the files or on the file format.
        """
        total = hashlib.sha256()
        for audio_file, row in sorted(self._rows.items()):
            total.update(f"{len(audio_file.encode())}:{audio_file}".encode())
            total.update(self.vectors[row].astype("<f4").tobytes())
        return total.hexdigest()[:16]

    def vectors_for(self, audio_files: Sequence[str]) -> Vectors:
        """Return the encodings (n, dim) of `audio_files`.

        Args:
            audio_files: Names as in the column `audio_file` of a mel dataset.

        Raises:
            ValueError: A file has no encoding.
        """
        return self.vectors[self._numbers(audio_files)]

    def vector(self, audio_file: str) -> Vectors:
        """Return the encoding (dim,) of a file as a view. Raise ValueError if the file has no encoding."""
        vector: Vectors = self.vectors[self._numbers([audio_file])[0]]
        return vector

    def at(self, dataset: TrainingImages, places: Sequence[Place]) -> Vectors:
        """Return the encodings (n, dim) of the files of slices. See `SliceEncodings.at`."""
        return self.vectors_for([dataset.audio_file(*place) for place in places])

    def _numbers(self, audio_files: Sequence[str]) -> list[int]:
        """Return the numbers of the vectors of files. Raise ValueError if a file has no encoding."""
        missing = sorted({audio_file for audio_file in audio_files if audio_file not in self._rows})
        if missing:
            names = ", ".join(missing[:MAX_NAMED_FILES])
            more = f" and {len(missing) - MAX_NAMED_FILES:,} more" if len(missing) > MAX_NAMED_FILES else ""
            raise ValueError(f"no encoding for {names}{more}: encode the dataset that is used for training")
        return [self._rows[audio_file] for audio_file in audio_files]


def schema(name: str, digest: str) -> pa.Schema:
    """Return the Parquet schema of encodings.

    Args:
        name: Name of the encoder.
        digest: Digest of the encoder's weights.
    """
    return pa.schema(
        [("audio_file", pa.string()), ("encoding", pa.list_(pa.float32()))],
        metadata={ENCODER: name.encode(), ENCODER_DIGEST: digest.encode()},
    )


def read_encodings(uri: str, run: Folder | None = None) -> Encodings:
    """Read encodings. Code that a pickle names is not run.

    Args:
        uri: Path or URI of a folder written by encode, of a Parquet file, or of a pickle of the original project.
        run: Folder of a training run. If it holds the index with which the run began, the encodings of this index
            are read.

    Raises:
        ValueError: The encodings are missing, unfinished or damaged, have several sizes or encoders, or are not finite.
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
    parent_uri, _, name = uri.rpartition("/")
    parent = Folder(parent_uri or ("/" if uri.startswith("/") else "."))
    try:
        entry = parent.entry(name)
    except FileNotFoundError:
        raise ValueError(f"encodings {uri}: no such file or folder") from None
    with parent.filesystem.open(parent.path(name), "rb") as file:
        magic = file.read(len(_PARQUET_MAGIC))
    if magic == _PARQUET_MAGIC:
        return _read_parquet(uri, [(parent, name)])
    if magic[:1] != _PICKLE_MAGIC:
        raise ValueError(f"encodings {uri}: is neither Parquet nor a pickle")
    if entry.size > MAX_PICKLE_BYTES:
        raise ValueError(f"encodings {uri}: the pickle has {entry.size:,} bytes, must be at most {MAX_PICKLE_BYTES:,}")
    try:
        return _stacked(read_pickled(parent.read(name)))
    except ValueError as error:
        raise ValueError(f"encodings {uri}: {error}") from error


def _version(folder: Folder, run: Folder | None) -> bytes:
    """Return the index with which a run began, or else the present index of a folder that encode wrote."""
    if run is not None and run.exists(ENCODINGS_VERSION):
        return run.read(ENCODINGS_VERSION)
    try:
        return commits.finished(folder)[2]
    except FileNotFoundError:
        raise ValueError(
            f"encodings {folder.uri}: not finished encodings (no {commits.SUCCESS}): run jobs/encode.py to its end"
        ) from None


def _stacked(by_file: dict[str, Vectors]) -> Encodings:
    sizes = sorted({len(vector) for vector in by_file.values()})
    if len(sizes) != 1:
        raise ValueError(
            f"holds vectors of {' and '.join(map(str, sizes)) or 'no'} values: all must have the same size"
        )
    if not np.isfinite(vectors := np.stack(list(by_file.values()))).all():
        raise ValueError("holds vectors that are not finite")
    return Encodings(by_file, vectors, None, None)


def _read_parquet(uri: str, parts: Sequence[tuple[Folder, str]]) -> Encodings:
    try:
        return _joined(parts)
    except (ValueError, pa.ArrowException, OSError) as error:
        if not is_damage(error):
            raise
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
            f"holds vectors of {sorted(sizes) or 'no'} values by the encoders {sorted(map(str, encoders))}: "
            "all must have the same size and the same encoder"
        )
    if len(set(audio_files)) != len(audio_files):
        repeated = [name for name, count in Counter(audio_files).items() if count > 1]
        raise ValueError(f"holds several encodings of {', '.join(repeated[:MAX_NAMED_FILES])}")
    return Encodings(audio_files, np.concatenate(vectors), *encoders.pop())


def _encoder(stated: pa.Schema) -> tuple[str | None, str | None]:
    """Check the columns of a file, and return the name and the digest of the encoder in its metadata."""
    types = {field.name: field.type for field in stated}
    if not _is_list_of_floats(types.get("encoding")) or not _is_text(types.get("audio_file")):
        columns = ", ".join(f"{name} {kind}" for name, kind in types.items())
        raise ValueError(f"has the columns {columns}, must have audio_file string and encoding list<float>")
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
    """Yield file names and their vectors (n, dim), in batches of a few thousand rows."""
    for batch in table.iter_batches(batch_size=4_096, columns=["audio_file", "encoding"]):
        names, column = batch.column("audio_file"), batch.column("encoding")
        if not batch.num_rows:
            continue
        values = column.flatten()
        dim = len(values) // batch.num_rows
        if (
            any(array.null_count for array in (names, column, values))
            or set(column.value_lengths().to_pylist()) != {dim}
            or not 1 <= dim <= MAX_DIM
        ):
            raise ValueError(
                f"holds empty cells, or vectors of different sizes: all must have the same size, 1 to {MAX_DIM}"
            )
        vectors = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, dim)
        if not np.isfinite(vectors).all():
            raise ValueError("holds vectors that are not finite")
        yield names.to_pylist(), vectors


def encoded_table(audio_files: Sequence[str], vectors: Vectors, name: str, digest: str) -> bytes:
    """Return the content of a Parquet file of encodings.

    Args:
        audio_files: Names of the files.
        vectors: Encodings (n, dim) in the order of `audio_files`.
        name: Name of the encoder.
        digest: Digest of the encoder's weights.
    """
    offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
    lists = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1)))
    buffer = io.BytesIO()
    pq.write_table(
        pa.table([pa.array(audio_files, pa.string()), lists], schema=schema(name, digest)), buffer, compression="zstd"
    )
    return buffer.getvalue()
