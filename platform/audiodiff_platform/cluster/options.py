"""Options that verbs share: the workers of a job, and the execution profile of a network."""

import pydantic

from audiodiff_core.sampling.batch_sizes import CPU_BATCH_SIZE, GPU_BATCH_SIZE, Precision
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.entry.options import Options


class WorkerOptions(Options):
    """Options of a verb whose workers run on CPUs or GPUs."""

    num_workers: int | None = pydantic.Field(
        None,
        ge=1,
        description="number of workers, each on one CPU or GPU; none: all CPUs or GPUs that are not reserved",
    )
    device: Device = pydantic.Field(
        "auto", description="device of the workers: cpu, gpu, or auto, which selects GPUs if the cluster has GPUs"
    )


class ProfileOptions(Options):
    """Options of a verb that generates audio: the part of the execution profile that can be chosen."""

    batch_size: int | None = pydantic.Field(
        None,
        ge=1,
        le=1_024,
        description="loops per network call, which affects the result; "
        f"none: {CPU_BATCH_SIZE} on a CPU, {GPU_BATCH_SIZE} on a GPU",
    )
    precision: Precision | None = pydantic.Field(
        None, description="precision of the network: fp32, bf16 or fp16; none: fp32 on a CPU, bf16 or fp16 on a GPU"
    )
