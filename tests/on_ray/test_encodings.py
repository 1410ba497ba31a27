"""Encodings from Parquet and from the original's pickles: read as written, and no code is run."""

import os
import pickle
import struct
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from audiodiff_platform.mel_data.encodings import Encodings, encoded_table, read_encodings, schema
from audiodiff_platform.mel_data.pickled_tensors import read_pickled
from audiodiff_platform.storage import Folder, commits

FILES = ["a.flac", "sub/b c.mp3", "é.wav"]


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def _pickled(folder: Path, content: Any, protocol: int | None = None) -> str:
    file = folder / "encodings.p"
    file.write_bytes(pickle.dumps(content, protocol))
    return str(file)


def test_parquet_is_read_as_written(tmp_path: Path, vectors: np.ndarray) -> None:
    file = tmp_path / "encodings.parquet"
    file.write_bytes(encoded_table(FILES, vectors, "audio-encoder", "abc"))
    encodings = read_encodings(str(file))
    assert (encodings.name, encodings.digest, encodings.dim, len(encodings), encodings.audio_files) == (
        "audio-encoder",
        "abc",
        5,
        3,
        FILES,
    )
    order = ["é.wav", "a.flac", "é.wav"]
    np.testing.assert_array_equal(encodings.vectors_for(order), vectors[[2, 0, 2]])
    assert encodings.vectors_for(order).dtype == np.float32
    table = pq.read_table(file)
    assert table.schema.field("encoding").type == pa.list_(pa.float32())
    assert table.schema.metadata[b"audiodiff_encoder"] == b"audio-encoder"


def test_a_path_relative_to_here(tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encodings.parquet").write_bytes(encoded_table(FILES, vectors, "e", "d"))
    monkeypatch.chdir(tmp_path)
    assert read_encodings("encodings.parquet").audio_files == FILES


def test_missing_files_are_named(vectors: np.ndarray) -> None:
    encodings = Encodings(FILES, vectors, None, None)
    with pytest.raises(ValueError, match=r"no encoding for w, x, y and 1 more: encode the dataset"):
        encodings.vectors_for(["z", "a.flac", "y", "x", "w", "w"])


def test_a_folder_of_committed_parts(tmp_path: Path, vectors: np.ndarray) -> None:
    folder = Folder(str(tmp_path / "encoded"))
    for shard, rows in enumerate(([2], [0, 1])):
        name = f"data/{shard:06d}.parquet"
        folder.write(name, encoded_table([FILES[row] for row in rows], vectors[rows], "e", "d"))
        commits.commit(folder, shard, {"rows": len(rows), "parts": {name: "digest"}})
    folder.write("data/000007.parquet", b"a leftover of a worker that died")
    with pytest.raises(ValueError, match="not finished encodings"):
        read_encodings(folder.uri)
    commits.succeed(folder, {}, commits.committed(folder))
    encodings = read_encodings(folder.uri)
    np.testing.assert_array_equal(encodings.vectors_for(FILES), vectors)
    assert encodings.content_digest == Encodings(FILES, vectors, None, None).content_digest
    assert encodings.content_digest != Encodings(FILES, vectors[::-1], None, None).content_digest


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_originals_pickle_of_tensors(
    tmp_path: Path, vectors: np.ndarray, protocol: int, dtype: torch.dtype
) -> None:
    content = {
        name: torch.from_numpy(vector[np.newaxis]).to(dtype) for name, vector in zip(FILES, vectors, strict=True)
    }
    # Protocol 2 pickles bytes as a call, which a storage of torch would need too. Python 3 wrote the original's pickles
    # with protocol 3 or higher.
    if protocol == 2:
        with pytest.raises(ValueError, match=r"names _codecs\.encode"):
            read_encodings(_pickled(tmp_path, content, protocol))
        return
    encodings = read_encodings(_pickled(tmp_path, content, protocol))
    assert (encodings.name, encodings.digest, encodings.dim) == (None, None, 5)
    for name, tensor in content.items():
        np.testing.assert_array_equal(encodings.vectors_for([name])[0], tensor[0].float().numpy())


def test_tensors_that_are_views_of_one_storage(vectors: np.ndarray) -> None:
    whole = torch.from_numpy(vectors).requires_grad_()
    content = {
        "row": whole[1:2],
        "column": whole[:, 2],
        "every other": whole.detach()[0, ::2],
        "repeated": torch.tensor([7.0]).expand(1, 4),
    }
    content["again"] = content["row"] = content["row"].detach()
    content["column"] = content["column"].detach()
    arrays = read_pickled(pickle.dumps(content))
    for name, tensor in content.items():
        np.testing.assert_array_equal(arrays[name], tensor.reshape(-1).numpy())


class _Storage:
    """Object that pickles as a storage of torch's first layout, in a tensor."""

    def __init__(
        self,
        values: list[float],
        claimed: int | None = None,
        size: tuple[int, ...] = (1, 2),
        kind: str = "FloatStorage",
    ) -> None:
        self.claimed = len(values) if claimed is None else claimed
        self.size, self.kind = size, kind
        self.data = struct.pack(f"<q{len(values)}f", self.claimed, *values)

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor, (_Bytes(self), 0, self.size, (self.size[-1], 1)[-len(self.size) :])


class _Bytes:
    def __init__(self, storage: _Storage) -> None:
        self.storage = storage

    def __reduce__(self) -> Any:
        # The reference has five parts: early versions of torch had no sixth part for views.
        reference = f"(Vstorage\nctorch\n{self.storage.kind}\nV0\nVcpu\nI{self.storage.claimed}\ntQ.".encode()
        plain = [
            pickle.dumps(part, 2)
            for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
        ]
        return torch.storage._load_from_bytes, (
            b"".join([*plain, reference, pickle.dumps(["0"], 2), self.storage.data]),
        )


def test_the_first_layout_of_tensors() -> None:
    assert read_pickled(pickle.dumps({"a": _Storage([1.5, -2.0])}))["a"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (_Storage([1.0, 2.0], claimed=10**15), "claims 1000000000000000 values in 8 bytes"),
        (_Storage([1.0, 2.0], size=(1, 3)), "reaches beyond its storage of 2 values"),
        (_Storage([1.0], size=(10**6, 10**6)), "must be 1 to 16384"),
        (_Storage([1.0, 2.0], kind="LongStorage"), r"names torch\.LongStorage"),
        (_Storage([1.0, 2.0], size=(2, 1)), r"a tensor of shape \(2, 1\) for a"),
    ],
)
def test_tensors_that_are_not_what_they_claim(storage: _Storage, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_pickled(pickle.dumps({"a": storage}))


class _View:
    """Object that pickles as a tensor that repeats the first value of a storage."""

    def __init__(self, storage: "_Bytes", values: int) -> None:
        self.storage, self.values = storage, values

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor, (self.storage, 0, (1, self.values), (0, 0))


def test_small_files_do_not_fill_the_memory() -> None:
    """Views, storages and dicts that a pickle repeats do not multiply its memory."""
    storage = _Bytes(_Storage([1.0]))
    views = pickle.dumps({str(number): _View(storage, 16_384) for number in range(1_000)})
    assert len(views) < 60_000  # 66 MB in memory
    with pytest.raises(ValueError, match=f"^holds tensors of more values than its {len(views)} bytes"):
        read_pickled(views)
    assert read_pickled(pickle.dumps({"a": _View(storage, 100), "b": _View(storage, 100)}))["b"].tolist() == [1.0] * 100
    big = _Bytes(_Storage([0.0] * 10_000)).__reduce__()[1][0]
    storages = pickle.dumps([_Calls(torch.storage._load_from_bytes, big) for _ in range(100)])
    with pytest.raises(ValueError, match=f"^holds storages of more than its {len(storages)} bytes"):
        read_pickled(storages)
    entries = {str(number): None for number in range(1_000)}
    with pytest.raises(ValueError, match=r"^cannot be read as a pickle"):
        read_pickled(pickle.dumps([_Calls(OrderedDict, entries) for _ in range(100)]))


class _Calls:
    """Object that pickles as a call of a function."""

    def __init__(self, function: Any, argument: Any) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> Any:
        return self.call


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_nothing_of_a_malicious_pickle_is_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    attacks = {
        "reduce": pickle.dumps({"a": _Runs(ran)}),
        "instance": b"(Vtouch\nios\nsystem\n.",
        "builtin": b"\x80\x04c__builtin__\nexec\n(Vprint(1)\ntR.",
        "attribute": b"\x80\x04\x8c\x0bcollections\x8c\x0fabc.sys.modules\x93.",
        "torch": b"\x80\x04ctorch\nload\n(Vx\ntR.",
        "state": b"\x80\x04ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb.",
        "new object": b"\x80\x04ccollections\nOrderedDict\n)\x81.",
        "extension": b"\x80\x04\x82\x01.",
        "array of bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        "storage": pickle.dumps({"a": _Nested(pickle.dumps(_Runs(ran), 2))}),
    }
    for name, content in attacks.items():
        file = tmp_path / "encodings.p"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"refused|neither") as refusal:
            read_encodings(str(file))
        assert "encodings.p" in str(refusal.value), name
    os.system(f"touch {ran}-seen")  # the command of the attack works
    assert not ran.exists()
    assert (tmp_path / "ran-seen").exists()


class _Nested:
    """Object that pickles as a storage whose bytes are another pickle."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.content,)


def test_claims_of_sizes_take_no_memory() -> None:
    for content in (
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",  # bytes
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",  # text
        b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",  # a number
    ):
        with pytest.raises(ValueError, match="cannot be read as a pickle"):
            read_pickled(content)
    for content in (
        b"\x80\x04}r\xff\xff\xff\xff.",  # the last place of the memo
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.",  # a frame
    ):
        assert read_pickled(content) == {}


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"a": 1},
        {1: torch.zeros(1, 2)},
        {"a": torch.zeros(1, 2, 3)},
        torch.zeros(2),
        {"a": {"b": torch.zeros(2)}},
    ],
)
def test_pickles_of_other_things(content: Any) -> None:
    with pytest.raises(ValueError, match=r"not of a dict|a tensor of shape"):
        read_pickled(pickle.dumps(content))


def test_damaged_pickles_are_mistakes_in_one_line(vectors: np.ndarray) -> None:
    whole = pickle.dumps({"a": torch.from_numpy(vectors[:1])})
    for end in range(len(whole)):
        with pytest.raises(ValueError, match=r"^cannot be read as a pickle[^\n]*$"):
            read_pickled(whole[:end])
    generator = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] = generator.integers(256)
        # Damage to a value cannot be detected. Any other damage must raise ValueError.
        with suppress(ValueError):
            read_pickled(bytes(damaged))


def test_wrong_files(tmp_path: Path, vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        read_encodings(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="not finished encodings"):
        read_encodings(str(tmp_path))
    sizes = {"a": torch.zeros(1, 2), "b": torch.zeros(1, 3)}
    for content, words in (
        (sizes, "of 2 and 3 values"),
        ({}, "of no values"),
        ({"a": torch.tensor([[float("nan")]])}, "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            read_encodings(_pickled(tmp_path, content))
    text = tmp_path / "text"
    text.write_text("a,1,2")
    with pytest.raises(ValueError, match="neither Parquet nor a pickle"):
        read_encodings(str(text))


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema("e", "d"))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            _table([{"audio_file": "a", "encoding": [1.0]}, {"audio_file": "a", "encoding": [2.0]}]),
            "several encodings of a",
        ),
        (
            _table([{"audio_file": "a", "encoding": [1.0]}, {"audio_file": "b", "encoding": [2.0, 3.0]}]),
            "of different sizes",
        ),
        (_table([{"audio_file": "a", "encoding": []}]), "of different sizes"),
        (_table([{"audio_file": "a", "encoding": None}]), "empty cells"),
        (_table([{"audio_file": "a", "encoding": [float("inf")]}]), "not finite"),
        (_table([]), "holds vectors of no values"),
        (pa.table({"audio_file": ["a"], "encoding": ["b"]}), r"has the columns audio_file string, encoding string"),
        (pa.table({"file": ["a"]}), "has the columns file string"),
    ],
)
def test_wrong_parquet(tmp_path: Path, table: pa.Table, words: str) -> None:
    pq.write_table(table, tmp_path / "encodings.parquet")
    with pytest.raises(ValueError, match=words):
        read_encodings(str(tmp_path / "encodings.parquet"))


def test_damaged_parquet(tmp_path: Path, vectors: np.ndarray) -> None:
    file = tmp_path / "encodings.parquet"
    whole = encoded_table(FILES, vectors, "e", "d")
    file.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"encodings\.parquet"):
        read_encodings(str(file))
    reasons = []
    for place in range(4, len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_encodings(str(file))
        except ValueError as error:
            reasons.append(str(error))
    assert len(reasons) > len(whole) / 4
    assert [reason for reason in reasons if not reason.startswith(f"encodings {file}: ")] == []
