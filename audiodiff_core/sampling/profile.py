"""Execution profile: settings other than the request that affect the bytes of a result."""

from typing import Literal, Self

import pydantic
import torch

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]
DEFAULT_BATCH_SIZES: dict[Device, int] = {"cpu": 4, "cuda": 32}


class ExecutionProfile(pydantic.BaseModel):
    """Batch size, precision and device of the network.

    Two runs with equal profiles return the same bytes on the same kind of device.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    batch_size: int = pydantic.Field(ge=1, le=1_024, description="samples per network call, padded to this shape")
    precision: Precision = pydantic.Field("fp32", description="arithmetic of the network")
    device: Device = pydantic.Field("cpu", description="kind of device")
    compiled: bool = pydantic.Field(
        False, description="compile the network with torch.compile: takes minutes, pays off for many loops of one shape"
    )

    @pydantic.model_validator(mode="after")
    def _precision_fits(self) -> Self:
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision fp16 is for GPUs: use fp32 or bf16 on a CPU")
        return self

    @classmethod
    def here(cls, precision: Precision | None = None, batch_size: int | None = None, compiled: bool = False) -> Self:
        """Create the profile for the device of this process: its GPU, or else the CPU.

        Args:
            precision: None selects fp32 on a CPU, because most CPUs emulate bf16 slowly. On a GPU, None
                selects bf16, or fp16 if the GPU has no bf16 arithmetic.
            batch_size: None selects the default of the device (DEFAULT_BATCH_SIZES).
            compiled: Whether to compile the network with torch.compile.

        Raises:
            ValueError: If the device does not support the precision.
        """
        device: Device = "cuda" if torch.cuda.is_available() else "cpu"
        if batch_size is None:
            batch_size = DEFAULT_BATCH_SIZES[device]
        if precision is None:
            if device == "cpu":
                precision = "fp32"
            else:
                precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return cls(batch_size=batch_size, precision=precision, device=device, compiled=compiled)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the network's weights and samples."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    @property
    def threads(self) -> int:
        """Number of torch threads on a CPU. On a GPU, the thread count does not affect the result."""
        return 1

    def prepare_process(self) -> None:
        """Set the number of torch threads on a CPU to 1.

        The thread count affects the last bits of a result. Jobs use more cores with more worker processes.
        """
        if self.device == "cpu":
            torch.set_num_threads(self.threads)
