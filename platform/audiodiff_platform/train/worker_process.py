"""A worker process of a training: its accelerator, and the end of a training that cannot continue."""

import logging
from collections.abc import Callable

import ray.train
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from audiodiff_core.training import sharding
from audiodiff_platform.mel_data.run_folder import STARTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.learner import TrainingStoppedError
from audiodiff_platform.train.options import RunOptions
from audiodiff_platform.train.restarts import count_start, record_error


def run_worker(options: RunOptions, train: Callable[[Accelerator], None], fsdp: bool = False) -> str | None:
    """Run `train` in this process, joined to the others -> the reason for which training cannot continue, or None.

    Ray Train answers an error with a restart of the group, and the restart that `count_start` refuses ends the training.
    """
    output = Folder(options.output_dir)
    accelerator = join_workers(options, fsdp)
    try:
        (reason,) = broadcast_object_list([_counted(output, accelerator)])
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


def _counted(output: Folder, accelerator: Accelerator) -> str | None:
    """Count this start, on rank 0 -> the reason to end the training: too many starts, or a run folder out of reach."""
    if not accelerator.is_main_process:
        return None
    try:
        return count_start(output, accelerator.num_processes)
    except OSError as error:
        return f"the run folder is out of reach ({error})"


def join_workers(options: RunOptions, fsdp: bool = False) -> Accelerator:
    """This process's accelerate, joined to the process group that Ray Train made."""
    for name in (
        "httpx2",
        "ray.train",
    ):  # or each request to the Hub, and each report to Ray Train, would be a line of progress
        logging.getLogger(name).setLevel(logging.WARNING)
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        torch.set_num_threads(1)
    # Without cpu=True, accelerate passes over Ray's gloo group and each worker would train alone.
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision=options.mixed_precision, fsdp_plugin=sharding() if fsdp else None
    )
    world = ray.train.get_context().get_world_size()
    assert accelerator.num_processes == world, f"accelerate sees {accelerator.num_processes} of {world} workers"
    assert world in options.usable_workers(1, world), (
        f"{world} workers cannot share batches of {options.train_batch_size}"
    )
    return accelerator
