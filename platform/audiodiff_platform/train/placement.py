"""Placement of the workers: their number, their device, and the CPUs and GPUs that each of them reserves."""

from dataclasses import replace

from audiodiff_platform.cluster.capacity import (
    WorkerResources,
    free,
    places,
    require_resources,
    total,
    uses_gpus,
    wait_for_places,
)
from audiodiff_platform.cluster.gpu_kinds import cpus_per_gpu, require_accelerator_type
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.train.device_defaults import CPU_BATCH_SIZE, default_data_workers
from audiodiff_platform.train.run_options import RunOptions
from audiodiff_platform.train.worker_group import Group


def group_for(options: RunOptions) -> Group:
    """Choose the workers: `num_workers` of the options, or one worker on each unreserved GPU or CPU.

    Each worker reserves a CPU, its GPU, and a CPU for each of its reading processes. If the cluster has no GPU yet, the
    function waits for the first nodes with GPUs, because their CPUs determine the number of reading processes.

    Raises:
        ValueError: The cluster can never provide the minimum number of workers, or the options do not suit the device.
    """
    gpu = uses_gpus(options.device)
    if options.mixed_precision in ("fp16", "tf32") and not gpu:
        raise ValueError(
            f"mixed_precision {options.mixed_precision} needs a GPU, and the workers run on CPUs: use bf16 or no, in "
            f"another folder if output_dir holds a run with {options.mixed_precision}"
        )
    if options.accelerator_type is not None and not gpu:
        raise ValueError(f"accelerator_type {options.accelerator_type} needs GPUs, and the workers run on CPUs")
    if gpu:
        require_accelerator_type(options.accelerator_type)
    cpus = cpus_per_gpu(options.accelerator_type) if gpu else None
    if gpu and cpus is None:
        requested = Group(options.num_workers or 1, gpu, 1 + (options.data_workers or 0), options.accelerator_type)
        require_resources(requested.min_workers, requested.each)
        wait_for_places(requested.min_workers, requested.each)
        cpus = cpus_per_gpu(options.accelerator_type)
    alone = WorkerResources(1, int(gpu), options.accelerator_type)
    data_workers = _data_workers(alone, cpus) if options.data_workers is None else options.data_workers
    each = replace(alone, cpus=1 + data_workers)
    group = Group(_workers(options, each), gpu, each.cpus, each.accelerator_type)
    require_resources(group.min_workers, each)
    kind = "GPU" if gpu else "CPU"
    low, high = group.min_workers, group.max_workers
    number = str(low) if low == high else f"{low} to {high}"
    say(f"{number} workers, a {kind} each ({free(kind)} of {total(kind)} {kind}s are free)")
    return group


def _data_workers(alone: WorkerResources, cpus_per_gpu: int | None) -> int:
    """Choose the reading processes of a worker, fewer if other jobs have reserved CPUs beside free GPUs.

    Args:
        alone: Resources of a worker without reading processes.
        cpus_per_gpu: CPUs for each GPU of the node with the fewest, or None for workers on CPUs.
    """
    room = places(alone)
    counts = range(default_data_workers(cpus_per_gpu), 0, -1)
    return next((count for count in counts if places(replace(alone, cpus=1 + count)) == room), 0)


def _workers(options: RunOptions, each: WorkerResources) -> int | tuple[int, int]:
    """Choose the number of workers, or its range, so that each worker has a sample of a batch that is set."""
    batch_size = options.train_batch_size or (None if each.gpus else CPU_BATCH_SIZE)
    if isinstance(options.num_workers, tuple):
        low, high = options.num_workers
        return low, high if options.train_batch_size is None else min(high, options.train_batch_size)
    if options.num_workers is not None:
        return options.num_workers
    room = max(1, places(each))
    if batch_size is None or batch_size >= room:
        return room
    say(
        f"{batch_size} of {room} {'GPUs' if each.gpus else 'CPUs'} are used, because each worker needs a sample of a "
        f"batch: train_batch_size {room} would use all"
    )
    return batch_size
