"""The original's encodings: a pickled dict of tensors, read without running anything that the file names.

Python's unpickler calls whatever a file asks for. This one takes only the opcodes that plain containers and tensors need, answers the
few names that a tensor's pickle holds with functions of its own, and refuses every other; torch is not involved. A tensor holds its
storage as the bytes of torch's older file format, which are pickles too and are read the same way:

    magic number, protocol, machine (byte order), reference to the storage (kind, elements), keys, then per storage its element count and data
"""

import io
import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

MAX_VALUES = 16_384  # of a tensor
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_PROTOCOL = 1001

_STORAGES = {"FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"), "HalfStorage": np.dtype("<f2")}
_OPCODES = [
    pickle.PROTO,
    pickle.FRAME,
    pickle.STOP,
    pickle.MARK,
    pickle.POP,
    pickle.POP_MARK,
    pickle.NONE,
    pickle.NEWTRUE,
    pickle.NEWFALSE,
    pickle.BININT,
    pickle.BININT1,
    pickle.BININT2,
    pickle.INT,
    pickle.LONG,
    pickle.LONG1,
    pickle.LONG4,
    pickle.BINUNICODE,
    pickle.SHORT_BINUNICODE,
    pickle.BINUNICODE8,
    pickle.UNICODE,
    pickle.BINBYTES,
    pickle.SHORT_BINBYTES,
    pickle.BINBYTES8,
    pickle.EMPTY_TUPLE,
    pickle.TUPLE,
    pickle.TUPLE1,
    pickle.TUPLE2,
    pickle.TUPLE3,
    pickle.EMPTY_LIST,
    pickle.LIST,
    pickle.APPEND,
    pickle.APPENDS,
    pickle.EMPTY_DICT,
    pickle.DICT,
    pickle.SETITEM,
    pickle.SETITEMS,
    pickle.PUT,
    pickle.BINPUT,
    pickle.LONG_BINPUT,
    pickle.MEMOIZE,
    pickle.GET,
    pickle.BINGET,
    pickle.LONG_BINGET,
    pickle.GLOBAL,
    pickle.STACK_GLOBAL,
    pickle.REDUCE,
    pickle.BINPERSID,
]


class _RefusedError(ValueError):
    """What a pickle holds or asks for, as the end of a sentence about the file."""


def read_pickled(content: bytes) -> dict[str, Vector]:
    """The vectors (n,) of a pickled dict, name -> tensor (1, n) or (n,).

    Raises ValueError where the pickle is anything else, in one line that says what it asked for.
    """
    try:
        found = _Tensors(content).load()
    except _RefusedError:
        raise
    except Exception as error:  # whatever a damaged pickle makes the unpickler do
        raise ValueError(
            f"is no pickle that can be read ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in found.items()
    ):
        raise ValueError("is a pickle, but not of a dict from file names to tensors")
    for name, value in found.items():
        if value.ndim not in (1, 2) or (value.ndim == 2 and len(value) != 1):
            raise ValueError(f"holds a tensor of shape {value.shape} for {name}: (1, n) or (n,) is taken")
    return {name: np.ascontiguousarray(value.reshape(-1), np.float32) for name, value in found.items()}


class _Plain(pickle._Unpickler):
    """Containers, numbers and text. In Python, not C: it takes no memory for sizes that a file only claims."""

    dispatch: ClassVar = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES}

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            if isinstance(error.args[0], int) and error.args[0] not in self.dispatch:
                raise _RefusedError(
                    f"is a pickle with the operation {bytes(error.args)!r}, which no tensor needs: refused"
                ) from error
            raise

    def find_class(self, module: str, name: str) -> Any:
        raise _RefusedError(
            f"is a pickle that asks for {module}.{name}, which tensors do not need: refused, since a pickle can run anything"
        )


class _Tensors(_Plain):
    """Containers of tensors, which become arrays: in all no more values than the file has bytes, since views can repeat those of a small storage."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._bytes, self._stored, self._values = len(content), 0, 0

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":
                return self._counted_tensor
            case "torch.storage", "_load_from_bytes":
                return self._counted_storage
            case "collections", "OrderedDict":
                return _no_hooks
        return super().find_class(module, name)

    def _counted_storage(self, content: Any) -> npt.NDArray[Any]:
        storage = _storage(content)
        self._stored += storage.nbytes
        if self._stored > self._bytes:
            raise _RefusedError(f"holds storages of more than its {self._bytes} bytes: some are named again and again")
        return storage

    def _counted_tensor(self, *parts: Any) -> npt.NDArray[Any]:
        tensor = _tensor(*parts)
        self._values += tensor.size
        if self._values > self._bytes:
            raise _RefusedError(
                f"holds tensors of more values than its {self._bytes} bytes: they repeat what it stores"
            )
        return tensor


class _Storage(_Plain):
    """The pickles inside a storage's bytes: `persistent_load` takes the reference to the storage apart."""

    def find_class(self, module: str, name: str) -> Any:
        return _STORAGES[name] if module == "torch" and name in _STORAGES else super().find_class(module, name)

    def persistent_load(self, reference: Any) -> tuple[np.dtype[Any], int]:
        match reference:
            case ("storage", np.dtype() as kind, str(), str(), int(count), *view) if view in ([], [None]):
                return kind, count
        raise _RefusedError(f"holds a tensor whose storage is {reference!r}: float32, float64 or float16 is taken")


def _storage(content: Any) -> npt.NDArray[Any]:
    """The values of a storage in torch's older file format."""
    if not isinstance(content, bytes):
        raise _RefusedError("holds a tensor whose storage is not bytes")
    file = io.BytesIO(content)
    magic, protocol, machine, reference, keys = (_Storage(file).load() for _ in range(5))
    if (
        (magic, protocol) != (TORCH_MAGIC, TORCH_PROTOCOL)
        or not isinstance(machine, dict)
        or machine.get("little_endian") is not True
    ):
        raise _RefusedError("holds a tensor whose storage is not in the format that torch pickles")
    if not isinstance(reference, tuple) or not isinstance(keys, list) or len(keys) != 1:
        raise _RefusedError("holds a tensor whose storage is not one storage")
    kind, count = reference
    (stored,) = struct.unpack("<q", file.read(8))
    data = file.read()
    if stored != count or len(data) != count * kind.itemsize:
        raise _RefusedError(f"holds a tensor whose storage claims {count} values in {len(data)} bytes")
    return np.frombuffer(data, kind)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> npt.NDArray[Any]:
    """The values of a view of a storage, copied; what else a tensor has (whether it needs a gradient, hooks) does not matter."""
    numbers = [offset, *size, *stride]
    if (
        not isinstance(storage, np.ndarray)
        or len(size) != len(stride)
        or not all(isinstance(number, int) and number >= 0 for number in numbers)
    ):
        raise _RefusedError(f"holds a tensor of size {size!r} and stride {stride!r}, which is none")
    if math.prod(size) == 0 or math.prod(size) > MAX_VALUES:
        raise _RefusedError(f"holds a tensor of {math.prod(size)} values: 1 to {MAX_VALUES} are taken")
    if offset + _last(size, stride) >= len(storage):
        raise _RefusedError(f"holds a tensor of size {size!r} that reaches beyond its storage of {len(storage)} values")
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [step * storage.itemsize for step in stride]).copy()


def _no_hooks() -> "OrderedDict[Any, Any]":
    """What torch pickles for a tensor's hooks, and Python for an ordered dict before its items."""
    return OrderedDict()


def _last(size: Sequence[int], stride: Sequence[int]) -> int:
    return sum((length - 1) * step for length, step in zip(size, stride, strict=True))
