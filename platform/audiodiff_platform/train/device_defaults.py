"""Defaults that depend on the device: batch size, precision, micro-batches and reading processes.

The job chooses the batch size and the precision once, before the run folder is claimed. They are settings of the run:
the run keeps them on other devices. The workers choose micro-batches whenever training starts, because the size of a
micro-batch affects rounding only.
"""

from collections.abc import Callable, Iterator

from audiodiff_platform.cluster.gpu_kinds import Gpu
from audiodiff_platform.train.run_options import Precision

CPU_BATCH_SIZE = 16
MEMORY_SHARE = 0.8
"""Share of the memory of a GPU that the estimate may fill.

The rest is for what the estimate leaves out: the CUDA context, the allocator, and the workspaces of cuDNN and NCCL.
"""
MAX_SAMPLES_PER_GPU = 64
"""A larger batch on a GPU takes fewer steps for the same epochs, and is hardly faster for each sample."""
MIN_STEPS_PER_EPOCH = 8
"""A small dataset is trained by steps of at most this fraction of its rows."""
MIN_SAMPLES_PER_STEP = 16
"""Samples of a step that any dataset may have, as on CPUs."""
MAX_DATA_WORKERS = 8


def default_precision(gpu: Gpu | None) -> Precision:
    """Choose the precision for the least GPU of the workers, or for CPUs (None)."""
    return "bf16" if gpu is not None and gpu.supports_bf16 else "no"


def default_batch_size(
    workers: int, gpu: Gpu | None, rows: int, accumulation_steps: int, memory_bytes: Callable[[int], int]
) -> int:
    """Choose the samples per forward pass of all workers.

    On CPUs, the number is CPU_BATCH_SIZE. On GPUs, each worker gets the largest power of two that is at most
    MAX_SAMPLES_PER_GPU, fits in its memory, and gives an epoch at least MIN_STEPS_PER_EPOCH steps or a step at most
    MIN_SAMPLES_PER_STEP samples. Each worker gets at least one sample.

    Args:
        workers: Number of workers.
        gpu: The least GPU of the workers, or None for CPUs.
        rows: Number of rows of the dataset.
        accumulation_steps: Forward passes per optimizer step.
        memory_bytes: Function that estimates the bytes of a worker for a number of samples.
    """
    if gpu is None:
        return max(CPU_BATCH_SIZE, workers)
    most = max(MIN_SAMPLES_PER_STEP, rows // MIN_STEPS_PER_EPOCH)
    each = MAX_SAMPLES_PER_GPU
    while each > 1 and (each * workers * accumulation_steps > most or not _fits(each, gpu.memory_bytes, memory_bytes)):
        each //= 2
    return each * workers


def micro_batch_size(
    samples: int, device_bytes: int | None, memory_bytes: Callable[[int], int], same_count: bool = False
) -> int:
    """Choose the most samples of a micro-batch: all samples of a worker, or the largest part that fits on its device.

    Args:
        samples: The most samples of a worker in a batch.
        device_bytes: Memory of the device, or None for a CPU, which takes all samples at once.
        memory_bytes: Function that estimates the bytes of a worker for a number of samples.
        same_count: Whether workers with one sample less must make as many micro-batches. FSDP needs it.
    """
    size = samples
    for size in _parts(samples, same_count):
        if device_bytes is None or _fits(size, device_bytes, memory_bytes):
            return size
    return size


def default_data_workers(cpus_per_gpu: int | None) -> int:
    """Choose the reading processes of a worker from the CPUs for each GPU. The worker itself takes one of these CPUs.

    Args:
        cpus_per_gpu: CPUs for each GPU of the node with the fewest, or None for workers on CPUs.
    """
    return 0 if cpus_per_gpu is None else max(0, min(MAX_DATA_WORKERS, cpus_per_gpu - 1))


def _fits(samples: int, device_bytes: int, memory_bytes: Callable[[int], int]) -> bool:
    return memory_bytes(samples) <= MEMORY_SHARE * device_bytes


def _parts(samples: int, same_count: bool) -> Iterator[int]:
    """Yield sizes of parts of `samples`, each about half the size before, down to 1."""
    count = 1
    while True:
        size = -(-samples // count)
        # A worker with one sample less makes one part less if the size divides its samples.
        while same_count and samples > 1 and (samples - 1) % size == 0:
            size += 1
        yield size
        if size == 1 or count >= samples:
            return
        count *= 2
