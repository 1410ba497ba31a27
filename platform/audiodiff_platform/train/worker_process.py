"""Worker process of a training run: its accelerator, and the end of a run that cannot continue."""

import logging
import os
from collections.abc import Callable
from typing import Any

import ray.train
import ray.train.torch
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object

from audiodiff_core.training import sharding
from audiodiff_platform.mel_data.run_folder import STARTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.device_defaults import micro_batch_size
from audiodiff_platform.train.learner import TrainingStoppedError
from audiodiff_platform.train.restarts import count_start, end_at_next_start, record_error
from audiodiff_platform.train.run_options import Precision, RunOptions


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
    except torch.OutOfMemoryError as error:
        explained = _out_of_memory(options, error)
        if accelerator.num_processes == 1:
            return explained
        end_at_next_start(output, accelerator.num_processes, explained)
        raise  # the other workers may wait for this one
    except Exception as error:
        record_error(output, error)
        raise
    return None


def _out_of_memory(options: RunOptions, error: torch.OutOfMemoryError) -> str:
    """Return the reason to end training, with remedies. The run folder accepts gradient checkpointing."""
    encodes = getattr(options, "vae", None) is not None and getattr(options, "latents", None) is None
    return (
        f"the GPU is out of memory ({' '.join(str(error).split())}): "
        f"{'' if getattr(options, 'gradient_checkpointing', False) else 'set gradient_checkpointing, or '}"
        f"train in another folder with a train_batch_size below {options.batch_size}"
        f"{', or with latents of encode --latents' if encodes else ''}"
    )


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
    world = ray.train.get_context().get_world_size()
    device = ray.train.torch.get_device()
    on_cpu = device.type == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    else:
        set_float32(options.precision)
        if world > 1:
            # accelerate takes it for the index of the device. Ray numbers the workers of a node by the numbers of their
            # GPUs, but sorts CUDA_VISIBLE_DEVICES as text: 0,1,10,2.
            os.environ["LOCAL_RANK"] = str(device.index)
    accelerator = Accelerator(
        # Without cpu=True, accelerate ignores the gloo process group of Ray Train, and each worker would train alone.
        cpu=on_cpu,
        mixed_precision=options.autocast,
        fsdp_plugin=sharding() if fsdp else None,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # one copy of the gradients
    )
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


def set_float32(precision: Precision) -> None:
    """Compute float32 products and convolutions on GPUs in TF32, which rounds factors to 10 bits, or exactly."""
    cudnn: Any = torch.backends.cudnn
    format_name = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = format_name
    cudnn.conv.fp32_precision = format_name
