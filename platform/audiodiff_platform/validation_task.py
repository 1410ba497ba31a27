"""How a checkpoint is validated beside training: in a task of Ray Train's, which training does not wait for.

Which checkpoints validation has in hand stands in the run folder (`training_state.py`), so that it outlives workers and tasks.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train import ValidationConfig, ValidationTaskConfig

from audiodiff_platform.cluster import WORKER_ENVIRONMENT, gpus, say
from audiodiff_platform.job import cause_of
from audiodiff_platform.ray_training import Group
from audiodiff_platform.storage import Folder
from audiodiff_platform.train_options import RunOptions
from audiodiff_platform.training_state import begin_validation, end_validation, in_validation

TASKS_AT_MOST = 3  # for one checkpoint: Ray starts those anew that end for lack of memory, without end

Validate = Callable[[str, dict[str, Any]], dict[str, Any]]


def validation_beside(validate: Validate, options: RunOptions, group: Group) -> ValidationConfig:
    """Ray Train's validation of each checkpoint by `validate(name, options)`: on a GPU that training leaves free, or else on a CPU."""
    spare = group.gpu and gpus() > group.most
    environment = WORKER_ENVIRONMENT if spare else {**WORKER_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}  # Ray hides no GPU from a task that asks for none
    return ValidationConfig(
        partial(validate_in_task, validate),
        ValidationTaskConfig(fn_kwargs={"options": options.model_dump(mode="json"), "all_cores": group.gpu}),
        {"num_cpus": 0, "num_gpus": int(spare), "max_retries": TASKS_AT_MOST, "runtime_env": {"env_vars": environment}},
    )


def validate_in_task(validate: Validate, checkpoint: Any, *, name: str, options: dict[str, Any], all_cores: bool) -> dict[str, Any]:
    """Ray Train's validation function, for the checkpoint `name` of the run folder; Ray's `checkpoint` only points to it.

    On a CPU it gives way to the training, and keeps to one core unless that computes on GPUs.
    """
    del checkpoint
    if not torch.cuda.is_available():
        os.nice(10)
        torch.set_num_threads(len(os.sched_getaffinity(0)) if all_cores and hasattr(os, "sched_getaffinity") else 1)
    output, found = Folder(options["output_dir"]), {}
    try:
        begun = begin_validation(output, name)
        if begun is None:
            return {}  # told of twice, since workers died just then, and done already
        if begun > TASKS_AT_MOST:
            say(f"validation: {name} has ended {TASKS_AT_MOST} processes: it is left without a result")
        else:
            found = validate(name, options)
    except Exception:  # a process that is ended does not come here: it is begun anew, or Ray Train's controller learns of it
        end_validation(output, name)
        raise
    end_validation(output, name)
    return found


def validate_left(validation: ValidationConfig, output: Folder) -> None:
    """Validates what is still in hand when training has ended: with a validation that dies then, Ray Train gives up those behind it."""

    def validated(name: str) -> None:
        validation.fn(None, name=name, **validation.task_config.fn_kwargs)

    task = ray.remote(validated).options(**validation.ray_remote_kwargs)
    for name in in_validation(output):
        say(f"validation of {name} is still to be made")
        try:
            ray.get(task.remote(name))
        except RayError as error:
            say(f"validation of {name} died ({cause_of(error)}): training ends without it")
            end_validation(output, name)
