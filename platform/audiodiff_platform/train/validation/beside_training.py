"""Validation of checkpoints beside training, in tasks that training does not wait for.

Which checkpoints validation has in hand stands in the run folder (`training_state.py`), so that it outlives workers and tasks.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError
from ray.train import ValidationConfig, ValidationTaskConfig

from audiodiff_platform.cluster import WORKER_ENVIRONMENT, gpus
from audiodiff_platform.entry.errors import cause_of
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.options import RunOptions
from audiodiff_platform.train.validation_marks import finish_validation, in_validation, start_validation
from audiodiff_platform.train.worker_group import Group

TASKS_AT_MOST = 3  # for one checkpoint: Ray starts those anew that end for lack of memory, without end

Validate = Callable[[str, dict[str, Any]], dict[str, Any]]


def validation_beside(validate: Validate, options: RunOptions, group: Group) -> ValidationConfig:
    """Configure the validation of each checkpoint by `validate(name, options)`.

    Validation runs on a GPU that training leaves free, else on a CPU.
    """
    spare = group.gpu and gpus() > group.most
    environment = (
        WORKER_ENVIRONMENT if spare else {**WORKER_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    )  # Ray hides no GPU from a task that asks for none
    resources = {
        "num_cpus": 0,
        "num_gpus": int(spare),
        "max_retries": TASKS_AT_MOST,
        "runtime_env": {"env_vars": environment},
    }
    return ValidationConfig(
        partial(validate_in_own_task, validate),
        ValidationTaskConfig(
            fn_kwargs={"options": options.model_dump(mode="json"), "all_cores": group.gpu, "resources": resources}
        ),
        {"num_cpus": 0, "max_retries": -1},
    )


def validate_in_own_task(
    validate: Validate,
    checkpoint: Any,
    *,
    name: str,
    options: dict[str, Any],
    all_cores: bool,
    resources: dict[str, Any],
) -> dict[str, Any]:
    """Validate the checkpoint `name` of the run folder in a task of its own, whose death costs its result alone.

    Ray Train calls this function, and would end the training if the function's own process died. Ray Train's `checkpoint`
    only points to the checkpoint.
    """
    del checkpoint
    task = ray.remote(validate_in_task).options(**resources)
    try:
        figures: dict[str, Any] = ray.get(task.remote(validate, name, options, all_cores))
    except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as death:
        say(f"validation of {name} died ({cause_of(death)}): training continues without its result")
        finish_validation(Folder(options["output_dir"]), name)
        return {}
    return figures


def validate_in_task(validate: Validate, name: str, options: dict[str, Any], all_cores: bool) -> dict[str, Any]:
    """Validate the checkpoint `name` -> its figures.

    On a CPU, validation gives way to training, and keeps to one core unless training runs on GPUs.
    """
    import torch

    if not torch.cuda.is_available():
        os.nice(10)
        torch.set_num_threads(len(os.sched_getaffinity(0)) if all_cores and hasattr(os, "sched_getaffinity") else 1)
    output, found = Folder(options["output_dir"]), {}
    try:
        begun = start_validation(output, name)
        if begun is None:
            return {}  # told of twice, since workers died just then, and done already
        if begun > TASKS_AT_MOST:
            say(f"validation: {name} has ended {TASKS_AT_MOST} processes: it is left without a result")
        else:
            found = validate(name, options)
    except Exception:  # a process that is killed does not come here: its task is retried, or given up by its caller
        finish_validation(output, name)
        raise
    finish_validation(output, name)
    return found


def validate_left(validation: ValidationConfig, output: Folder) -> None:
    """Validate the checkpoints that training handed over and whose validation has not ended with it."""
    for name in in_validation(output):
        say(f"validation of {name} is still to be made")
        try:
            validation.fn(None, name=name, **validation.task_config.fn_kwargs)
        except RayError as error:
            say(f"validation of {name} failed ({cause_of(error)}): training ends without it")
            finish_validation(output, name)
