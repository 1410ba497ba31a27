"""Choice of the options that depend on the device, once for a run, and the line on the terminal that states it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from audiodiff_core.training import OptimizerName
from audiodiff_platform.cluster.capacity import places
from audiodiff_platform.cluster.gpu_kinds import Gpu, least_gpu
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.device_defaults import default_batch_size, default_precision, micro_batch_size
from audiodiff_platform.train.run_options import Precision, RunOptions
from audiodiff_platform.train.worker_group import Group

CHOSEN_SETTINGS = ("train_batch_size", "mixed_precision")
FLOAT_NAMES: dict[Precision, str] = {"no": "float32", "tf32": "float32", "bf16": "bf16", "fp16": "fp16"}
OPTIMIZER_NAMES: dict[OptimizerName, str] = {"adamw": "fused AdamW", "adamw_8bit": "8-bit AdamW"}

OptionsT = TypeVar("OptionsT", bound=RunOptions)
MemoryOf = Callable[[OptionsT, int, int], int]
"""Function that estimates the bytes of a worker from the options, the number of workers and the samples of a pass."""


def with_recorded(options: OptionsT, output: Folder, name: str) -> OptionsT:
    """Return the options with the batch size and the precision that the run folder records, where they are not set.

    Args:
        options: Options of the run.
        output: The run folder.
        name: Name of the settings file in the run folder.

    Raises:
        ValueError: The recorded batch is too small for the workers.
    """
    if not output.exists(name):
        return options
    settings = output.read_json(name)
    return options.filled_in(
        {field: settings[field] for field in CHOSEN_SETTINGS if getattr(options, field) is None and field in settings}
    )


def choose(
    options: OptionsT, group: Group, rows: int, memory_of: MemoryOf[OptionsT]
) -> tuple[OptionsT, Group, Gpu | None]:
    """Choose the batch size, the precision and the reading processes where they are not set.

    Args:
        options: Options of the run, with the values that the run folder records.
        group: Size and device of the worker group.
        rows: Number of rows of the dataset.
        memory_of: Estimate of the memory of a worker.

    Returns:
        The options, the group with at most one worker for each sample of a batch, and the least GPU of the cluster, or
        None for workers on CPUs.

    Raises:
        ValueError: torch finds no GPU on a node that has GPUs, or a GPU lacks the precision.
    """
    gpu = least_gpu(group.accelerator_type) if group.gpu else None
    options = options.filled_in(
        {
            "mixed_precision": options.mixed_precision or default_precision(gpu),
            "data_workers": group.cpus - 1,
        }
    )
    if options.precision == "tf32" and gpu is not None and not gpu.supports_tf32:
        raise ValueError(f"mixed_precision tf32: {gpu.name} has no TF32, use no")
    workers = group.max_workers
    if isinstance(group.workers, tuple):  # the maximum may be far above what the cluster has
        workers = min(workers, max(group.min_workers, places(group.each)))
    batch_size = options.train_batch_size or default_batch_size(
        workers, gpu, rows, options.gradient_accumulation_steps, partial(memory_of, options, workers)
    )
    if isinstance(group.workers, tuple):
        group = replace(group, workers=(group.workers[0], min(group.workers[1], batch_size)))
    return options.filled_in({"train_batch_size": batch_size}), group, gpu


def least_micro_batch(options: OptionsT, group: Group, gpu: Gpu | None, memory_of: MemoryOf[OptionsT]) -> int:
    """Return the samples of a micro-batch on the least GPU, if the group has its fewest workers."""
    workers = group.min_workers
    return micro_batch_size(
        -(-options.batch_size // workers),
        None if gpu is None else gpu.memory_bytes,
        partial(memory_of, options, workers),
    )


def describe(
    options: RunOptions,
    group: Group,
    gpu: Gpu | None,
    stated: RunOptions,
    recorded: RunOptions,
    *,
    optimizer: OptimizerName = "adamw",
    compiled: bool = False,
) -> str:
    """Return what determines the speed of training, and the origin of each choice, in one line.

    Args:
        options: Options of the run.
        group: Size and device of the worker group.
        gpu: The least GPU of the cluster, or None for workers on CPUs.
        stated: Options as set by the user.
        recorded: The same options with the values that the run folder records.
        optimizer: The optimizer.
        compiled: Whether the network is compiled.
    """

    def origin(name: str) -> str:
        if getattr(stated, name) is not None:
            return "set"
        return "chosen" if getattr(recorded, name) is None else "recorded"

    most = group.max_workers
    share = f"{'' if options.batch_size % most == 0 else 'up to '}{-(-options.batch_size // most)}"
    kind = "CPU" if gpu is None else "GPU"
    devices = f"a {kind}" if most == 1 else f"each of {most} {kind}s"
    name = "" if gpu is None else f", {gpu.name}"
    precision = origin("mixed_precision")
    if gpu is not None and precision == "chosen":
        precision += f": compute capability {gpu.capability[0]}.{gpu.capability[1]}"
    return ", ".join(
        [
            f"batch {options.batch_size} ({origin('train_batch_size')}: {share} on {devices}{name})",
            f"{FLOAT_NAMES[options.precision]} ({precision})",
            *([] if gpu is None else [f"TF32 {'on' if options.precision == 'tf32' else 'off'}"]),
            OPTIMIZER_NAMES[optimizer],
            "compilation" if compiled else "no compilation",
            *([f"data_workers {group.cpus - 1} ({origin('data_workers')})"] if group.cpus > 1 or gpu else []),
        ]
    )
