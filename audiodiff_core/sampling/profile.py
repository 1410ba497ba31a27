"""How a batch is computed: what, besides the request, decides the bytes."""

from typing import Literal, Self

import pydantic
import torch

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]
DEFAULT_BATCH_SIZES: dict[Device, int] = {"cpu": 4, "cuda": 32}


class ExecutionProfile(pydantic.BaseModel):
    """How a batch is computed. Two runs with the same profile, on the same kind of device, give the same bytes."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    batch_size: int = pydantic.Field(ge=1, le=1_024, description="samples per network call, padded to this shape")
    precision: Precision = pydantic.Field("fp32", description="arithmetic of the network")
    device: Device = pydantic.Field("cpu", description="kind of device")
    compiled: bool = pydantic.Field(
        False, description="network compiled by torch.compile: minutes at the start, for many loops of one shape"
    )

    @pydantic.model_validator(mode="after")
    def _precision_fits(self) -> Self:
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision fp16 is for GPUs: use fp32 or bf16 on a CPU")
        return self

    @classmethod
    def here(cls, precision: Precision | None = None, batch_size: int | None = None, compiled: bool = False) -> Self:
        """The profile for this process's device, its GPU if it has one; what is None is chosen for it.

        A CPU gets fp32, since most compute bf16 by way of fp32 and lose time by it, and 4 samples at once. A GPU gets bf16, or fp16 where
        it has no bf16 arithmetic, and 32 samples at once.
        """
        device: Device = "cuda" if torch.cuda.is_available() else "cpu"
        if batch_size is None:
            batch_size = DEFAULT_BATCH_SIZES[device]
        if precision is None:
            precision = (
                "fp32"
                if device == "cpu"
                else "bf16"
                if torch.cuda.is_bf16_supported(including_emulation=False)
                else "fp16"
            )
        return cls(batch_size=batch_size, precision=precision, device=device, compiled=compiled)

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    @property
    def threads(self) -> int:
        """Torch threads that `prepare_process` sets on a CPU; on a GPU they do not matter to the result."""
        return 1

    def prepare_process(self) -> None:
        """One torch thread on a CPU: more workers, not more threads, use more cores, and the thread count moves the last bits."""
        if self.device == "cpu":
            torch.set_num_threads(self.threads)
