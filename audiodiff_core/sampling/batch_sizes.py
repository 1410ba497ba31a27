"""Defaults of the execution profile, without torch."""

from typing import Literal

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
CPU_BATCH_SIZE = 4
GPU_BATCH_SIZE = 32
