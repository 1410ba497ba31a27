"""Worker process of a training run: its accelerator, and the end of a run that cannot continue."""

import logging
from collections.abc import Callable
from typing import Any

import ray.train
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object

from audiodiff_core.training import sharding
from audiodiff_platform.mel_data.run_folder import STARTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.device_defaults import micro_batch_size
from audiodiff_platform.train.learner import TrainingStoppedError
from audiodiff_platform.train.restarts import count_start, record_error
from audiodiff_platform.train.run_options import RunOptions


def run_worker(options: RunOptions, train: Callable[[Accelerator], None], fsdp: bool = False) -> str | None:
    """Join this process to the other workers and run `train`.

    Ray Train restarts the group after an error. Training ends when `count_start` returns a reason.

    Args:
        options: Options of the run.
        train: Function to run with the accelerator of this worker.
        fsdp: Shard the weights and the optimizer over the workers.

    Returns:
        The reason if training cannot continue, else None.
    """
    output = Folder(options.output_dir)
    accelerator = join_workers(options, fsdp)
    try:
        (reason,) = broadcast_object_list([_count_on_rank_0(output, accelerator)])
        if reason is not None:
            return str(reason)
        train(accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            output.remove(STARTS)
    except (FloatingPointError, TrainingStoppedError) as reason:
        return str(reason)
    except Exception as error:
        record_error(output, error)
        raise
    return None


def _count_on_rank_0(output: Folder, accelerator: Accelerator) -> str | None:
    """Count this start on rank 0, and return the reason if training must end, else None."""
    if not accelerator.is_main_process:
        return None
    try:
        return count_start(output, accelerator.num_processes)
    except OSError as error:
        return f"run folder {output.uri} is unreachable ({error})"


def join_workers(options: RunOptions, fsdp: bool = False) -> Accelerator:
    """Return the accelerator of this process, joined to the process group of Ray Train.

    Args:
        options: Options of the run.
        fsdp: Shard the weights and the optimizer over the workers.
    """
    # These loggers print a line for each request to the Hub and each report to Ray Train.
    for name in ("httpx2", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        torch.set_num_threads(1)
    else:
        _use_exact_float32()
    accelerator = Accelerator(
        # Without cpu=True, accelerate ignores the gloo process group of Ray Train, and each worker would train alone.
        cpu=on_cpu,
        mixed_precision=options.precision,
        fsdp_plugin=sharding() if fsdp else None,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # one copy of the gradients
    )
    world = ray.train.get_context().get_world_size()
    assert accelerator.num_processes == world, f"accelerate joined {accelerator.num_processes} of {world} workers"
    assert world in options.usable_workers(1, world), f"{world} workers cannot share batches of {options.batch_size}"
    return accelerator


def samples_per_pass(
    options: RunOptions, accelerator: Accelerator, memory_bytes: Callable[[int], int], fsdp: bool = False
) -> int:
    """Choose the size of the micro-batches, which is the same for all workers. All workers call this function.

    Args:
        options: Options of the run.
        accelerator: Accelerator of this worker.
        memory_bytes: Function that estimates the bytes of a worker for a number of samples.
        fsdp: Whether the weights are sharded over the workers.
    """
    workers = accelerator.num_processes
    on_gpu = accelerator.device.type == "cuda"
    device_bytes = torch.cuda.get_device_properties(accelerator.device).total_memory if on_gpu else None
    uneven = options.batch_size % workers > 0
    size = micro_batch_size(-(-options.batch_size // workers), device_bytes, memory_bytes, same_count=fsdp and uneven)
    return int(min(gather_object([size])))


def _use_exact_float32() -> None:
    """Compute float32 products and convolutions on GPUs without TF32, which rounds factors to 10 bits."""
    cudnn: Any = torch.backends.cudnn
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    cudnn.conv.fp32_precision = "ieee"
