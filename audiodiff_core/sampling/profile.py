"""Execution profile: settings other than the request that affect the bytes of a result."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, Self, TypeVar

import pydantic
import torch

from audiodiff_core.sampling.batch_sizes import CPU_BATCH_SIZE, GPU_BATCH_SIZE, Precision

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
INTERACTIVE_BATCH_SIZES = (1, 4, 8, 32)
"""Batch sizes of interactive use. A call uses the smallest one that takes all its requests."""

Arithmetic = tuple[str, str, bool]
"""fp32 precision of matrix products and of convolutions on GPUs, and whether cuDNN chooses algorithms by speed."""

SettingT = TypeVar("SettingT")


class ExecutionProfile(pydantic.BaseModel):
    """Batch size, precision, device and threads of the network.

    Two runs with equal profiles return the same bytes on the same kind of device. The exception is `compiled` on a GPU,
    where cuDNN chooses the algorithms of convolutions by their speed.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    batch_size: int = pydantic.Field(ge=1, le=1_024, description="samples per network call, padded to this shape")
    precision: Precision = pydantic.Field(
        "fp32",
        description="arithmetic of the network: fp32 (IEEE), tf32 (fp32 with products of 10-bit mantissas on a GPU), "
        "bf16 or fp16",
    )
    device: str = pydantic.Field("cpu", description="torch device: cpu, cuda, cuda:1, mps")
    compiled: bool = pydantic.Field(
        False, description="compile the network with torch.compile: takes minutes, pays off for many loops of one shape"
    )
    threads: int = pydantic.Field(1, ge=1, le=1_024, description="torch threads on a CPU")

    @pydantic.field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        try:
            return str(torch.device(value))
        except RuntimeError:
            raise ValueError(f"device {value} is not a torch device: use cpu, cuda, cuda:1 or mps") from None

    @pydantic.model_validator(mode="after")
    def _precision_fits(self) -> Self:
        if self.precision in ("fp16", "tf32") and self.device == "cpu":
            raise ValueError(f"precision {self.precision} is for GPUs: use fp32 or bf16 on a CPU")
        return self

    @classmethod
    def here(
        cls,
        precision: Precision | None = None,
        batch_size: int | None = None,
        compiled: bool = False,
        device: str | None = None,
    ) -> Self:
        """Create the profile of jobs and servers.

        Args:
            precision: None selects fp32 on a CPU, because most CPUs emulate bf16 slowly. On a GPU, None
                selects bf16, or fp16 if the GPU has no bf16 arithmetic.
            batch_size: None selects CPU_BATCH_SIZE or GPU_BATCH_SIZE.
            compiled: Whether to compile the network with torch.compile.
            device: A torch device. None selects the GPU of this process, or else the CPU.

        Raises:
            ValueError: If the device does not support the precision.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if batch_size is None:
            batch_size = default_batch_size(device)
        if precision is None:
            if not device.startswith("cuda"):
                precision = "fp32"
            else:
                precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return cls(batch_size=batch_size, precision=precision, device=device, compiled=compiled)

    @classmethod
    def interactive(cls, requests: int | None = None, device: str | None = None) -> Self:
        """Create the profile of a call for a few loops, which uses all cores and pads as little as possible.

        Args:
            requests: Number of requests of the call. None, for an unlimited number, selects the largest batch size.
            device: A torch device. None selects the GPU of this process, or else the CPU.
        """
        fitting = [size for size in INTERACTIVE_BATCH_SIZES if requests is not None and size >= requests]
        profile = cls.here(batch_size=fitting[0] if fitting else INTERACTIVE_BATCH_SIZES[-1], device=device)
        return profile.model_copy(update={"threads": torch.get_num_threads()})

    @property
    def kind(self) -> str:
        """Kind of the device, which affects the bytes, such as cpu or cuda."""
        return torch.device(self.device).type

    @property
    def on_gpu(self) -> bool:
        """True if the device is a CUDA GPU."""
        return self.kind == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the network's weights and samples."""
        return DTYPES[self.precision]

    def record(self) -> dict[str, str | int | bool]:
        """Return what affects the bytes of a result, for manifests: the profile with the kind of the device."""
        return {**self.model_dump(), "device": self.kind}

    def prepare_process(self) -> None:
        """Set the number of torch threads of this process, and the arithmetic of its GPU.

        The thread count affects the last bits of a result. Jobs use more cores with more worker processes.
        """
        if self.kind == "cpu":
            torch.set_num_threads(self.threads)
        if self.on_gpu:
            _set_arithmetic(self._arithmetic)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set threads and arithmetic as `prepare_process` within the block, and restore them after the block.

        Blocks of several threads may overlap. The settings are restored at the end of the last block, in its thread. If
        the profiles of the blocks have different settings, the last block to begin determines those of the process.
        """
        with ExitStack() as settings:
            if self.kind == "cpu":
                settings.enter_context(_THREADS.set_to(self.threads))
            if self.on_gpu:
                settings.enter_context(_ARITHMETIC.set_to(self._arithmetic))
            yield

    @property
    def _arithmetic(self) -> Arithmetic:
        precision = "tf32" if self.precision == "tf32" else "ieee"
        return precision, precision, self.compiled


class _SharedSetting(Generic[SettingT]):
    """Setting of the process that overlapping blocks of code set: the first saves it, and the last restores it.

    Args:
        read: Function that returns the setting.
        write: Function that changes the setting.
    """

    def __init__(self, read: Callable[[], SettingT], write: Callable[[SettingT], None]) -> None:
        self._read, self._write = read, write
        self._lock = threading.Lock()
        self._blocks = 0

    @contextmanager
    def set_to(self, value: SettingT) -> Iterator[None]:
        """Set the setting within the block. See the class for its restoration."""
        with self._lock:
            if not self._blocks:
                self._before = self._read()
            self._blocks += 1
            self._write(value)
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    self._write(self._before)


def _current_arithmetic() -> Arithmetic:
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.benchmark


def _set_arithmetic(arithmetic: Arithmetic) -> None:
    cudnn: Any = torch.backends.cudnn
    torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.benchmark = arithmetic


_ARITHMETIC = _SharedSetting(_current_arithmetic, _set_arithmetic)
# OpenMP has a number for each thread, which each block sets, and MKL has one for the process.
_THREADS = _SharedSetting(torch.get_num_threads, torch.set_num_threads)


def default_batch_size(device: str) -> int:
    """Return the batch size of jobs and servers on a device."""
    return CPU_BATCH_SIZE if device == "cpu" else GPU_BATCH_SIZE
