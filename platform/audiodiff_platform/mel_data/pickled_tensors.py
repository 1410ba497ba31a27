"""A safe reader for the encodings of the original audio-diffusion project: a pickled dict of tensors.

Python's unpickler calls any function that a file names. The unpickler of this module accepts only the opcodes of
plain containers and tensors. It replaces the few functions that the pickle of a tensor names with functions of its
own, and rejects all others. It does not use torch. The storage of a tensor is a byte string in the legacy file format
of torch, a sequence of pickles that is read in the same way:

    magic number, protocol, machine (byte order), reference to the storage (type, number of elements), keys,
    then for each storage its number of elements and its data
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

MAX_TENSOR_VALUES = 16_384
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
    """Error for a rejected pickle. The message is a predicate whose subject is the file."""


def read_pickled(content: bytes) -> dict[str, Vector]:
    """Read a pickled dict from name to tensor (1, n) or (n,).

    Args:
        content: Content of the pickle.

    Returns:
        The tensors by name, as vectors (n,).

    Raises:
        ValueError: The pickle is damaged, holds other content, or names a function that tensors do not need. The
            message is one line, a predicate whose subject is the file.
    """
    try:
        tensors = _TensorUnpickler(content).load()
    except _RefusedError:
        raise
    except Exception as error:  # a damaged pickle can cause any error in the unpickler
        raise ValueError(
            f"cannot be read as a pickle ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in tensors.items()
    ):
        raise ValueError("is a pickle, but not of a dict from file names to tensors")
    for name, value in tensors.items():
        if value.ndim not in (1, 2) or (value.ndim == 2 and len(value) != 1):
            raise ValueError(f"holds a tensor of shape {value.shape} for {name}: must be (1, n) or (n,)")
    return {name: np.ascontiguousarray(value.reshape(-1), np.float32) for name, value in tensors.items()}


class _PlainUnpickler(pickle._Unpickler):
    """An unpickler for containers, numbers and text.

    The base class is the Python implementation: the C implementation allocates memory for the sizes that a file claims.
    """

    dispatch: ClassVar = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES}

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            if isinstance(error.args[0], int) and error.args[0] not in self.dispatch:
                raise _RefusedError(
                    f"is a pickle with the operation {bytes(error.args)!r}, which tensors do not need: refused"
                ) from error
            raise

    def find_class(self, module: str, name: str) -> Any:
        raise _RefusedError(
            f"is a pickle that names {module}.{name}, which tensors do not need: refused, because it could run any code"
        )


class _TensorUnpickler(_PlainUnpickler):
    """An unpickler for containers of tensors, which become arrays.

    All tensors together must not hold more values than the file has bytes. Otherwise, a small file could hold many
    views of one storage, and each view would become an array.
    """

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
                return _empty_ordered_dict
        return super().find_class(module, name)

    def _counted_storage(self, content: Any) -> npt.NDArray[Any]:
        storage = _storage(content)
        self._stored += storage.nbytes
        if self._stored > self._bytes:
            raise _RefusedError(f"holds storages of more than its {self._bytes} bytes: some are used repeatedly")
        return storage

    def _counted_tensor(self, *parts: Any) -> npt.NDArray[Any]:
        tensor = _tensor(*parts)
        self._values += tensor.size
        if self._values > self._bytes:
            raise _RefusedError(f"holds tensors of more values than its {self._bytes} bytes: views repeat its values")
        return tensor


class _StorageUnpickler(_PlainUnpickler):
    """An unpickler for the pickles in the bytes of a storage.

    The reference to the storage becomes the type and the number of its elements.
    """

    def find_class(self, module: str, name: str) -> Any:
        return _STORAGES[name] if module == "torch" and name in _STORAGES else super().find_class(module, name)

    def persistent_load(self, reference: Any) -> tuple[np.dtype[Any], int]:
        match reference:
            case ("storage", np.dtype() as kind, str(), str(), int(count), *view) if view in ([], [None]):
                return kind, count
        raise _RefusedError(f"holds a tensor whose storage is {reference!r}: must be float32, float64 or float16")


def _storage(content: Any) -> npt.NDArray[Any]:
    """Return the values of a storage in the legacy file format of torch."""
    if not isinstance(content, bytes):
        raise _RefusedError("holds a tensor whose storage is not bytes")
    file = io.BytesIO(content)
    magic, protocol, machine, reference, keys = (_StorageUnpickler(file).load() for _ in range(5))
    if (
        (magic, protocol) != (TORCH_MAGIC, TORCH_PROTOCOL)
        or not isinstance(machine, dict)
        or machine.get("little_endian") is not True
    ):
        raise _RefusedError("holds a tensor whose storage is not in the legacy format of torch")
    if not isinstance(reference, tuple) or not isinstance(keys, list) or len(keys) != 1:
        raise _RefusedError("holds a tensor whose byte string does not hold exactly one storage")
    kind, count = reference
    (stored,) = struct.unpack("<q", file.read(8))
    data = file.read()
    if stored != count or len(data) != count * kind.itemsize:
        raise _RefusedError(f"holds a tensor whose storage claims {count} values in {len(data)} bytes")
    return np.frombuffer(data, kind)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> npt.NDArray[Any]:
    """Return a copy of the values of a view of a storage. Other properties of the tensor are ignored."""
    numbers = [offset, *size, *stride]
    if (
        not isinstance(storage, np.ndarray)
        or len(size) != len(stride)
        or not all(isinstance(number, int) and number >= 0 for number in numbers)
    ):
        raise _RefusedError(f"holds a tensor of size {size!r} and stride {stride!r}, which is invalid")
    if math.prod(size) == 0 or math.prod(size) > MAX_TENSOR_VALUES:
        raise _RefusedError(f"holds a tensor of {math.prod(size)} values: must be 1 to {MAX_TENSOR_VALUES}")
    if offset + _last_index(size, stride) >= len(storage):
        raise _RefusedError(f"holds a tensor of size {size!r} that reaches beyond its storage of {len(storage)} values")
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [step * storage.itemsize for step in stride]).copy()


def _empty_ordered_dict() -> "OrderedDict[Any, Any]":
    """Return an empty OrderedDict, which torch pickles as the hooks of a tensor."""
    return OrderedDict()


def _last_index(size: Sequence[int], stride: Sequence[int]) -> int:
    return sum((length - 1) * step for length, step in zip(size, stride, strict=True))
