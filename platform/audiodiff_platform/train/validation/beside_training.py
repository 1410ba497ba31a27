"""Validation of checkpoints in separate Ray tasks, which training does not wait for.

The run folder marks the checkpoints in validation (`validation_marks.py`), so that the marks outlive workers and tasks.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError
from ray.train import ValidationConfig, ValidationTaskConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from audiodiff_platform.cluster import HIDDEN_GPUS, WORKER_ENVIRONMENT
from audiodiff_platform.cluster.capacity import free
from audiodiff_platform.cluster.private_ray import HEAD_RESOURCE
from audiodiff_platform.entry.errors import cause_of
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.run_options import RunOptions
from audiodiff_platform.train.validation_marks import finish_validation, in_validation, start_validation
from audiodiff_platform.train.worker_group import Group

MAX_TASKS = 3  # per checkpoint, because Ray restarts a task any number of times if the task runs out of memory

OptionsT = TypeVar("OptionsT", bound=RunOptions)
Validate = Callable[[str, dict[str, Any]], dict[str, Any]]


def with_validation_place(options: OptionsT, group: Group) -> OptionsT:
    """Return the options with the place where checkpoints are validated, `group` or `task`.

    Raises:
        ValueError: The workers cannot validate with FSDP, because each of them takes part in every forward pass.
    """
    sharded = getattr(options, "fsdp", False)
    if options.validate_in == "group" and sharded:
        raise ValueError("validate_in group with fsdp: the workers cannot share the samples, use task")
    if options.validate_in != "auto":
        return options
    place = "group" if group.gpu and free("GPU") <= group.max_workers and not sharded else "task"
    return options.model_copy(update={"validate_in": place})


def validation_beside(validate: Validate, options: RunOptions, group: Group) -> ValidationConfig:
    """Configure validation on a GPU that training and other jobs leave free, else on a CPU.

    Args:
        validate: Function that validates a checkpoint, called with its name and the options as a dictionary.
        options: Options of the run.
        group: Size and device of the worker group.
    """
    spare_gpu = group.gpu and free("GPU") > group.max_workers
    environment = WORKER_ENVIRONMENT if spare_gpu else {**WORKER_ENVIRONMENT, **HIDDEN_GPUS}
    resources = {
        "num_cpus": 0,
        "num_gpus": int(spare_gpu),
        "max_retries": MAX_TASKS,
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
    """Validate a checkpoint in a separate task, so that the death of the task loses only its result.

    Ray Train calls this function in another task, and ends the training run if that other task dies.

    Args:
        validate: Function that validates a checkpoint.
        checkpoint: Checkpoint object of Ray Train, which is not used.
        name: Name of the checkpoint in the run folder.
        options: Options of the run as a dictionary.
        all_cores: Use all CPU cores if validation runs on a CPU.
        resources: Ray options of the separate task.

    Returns:
        The validation metrics. Empty if the task died.
    """
    del checkpoint
    place = away_from_head("GPU" if resources["num_gpus"] else "CPU")
    task = ray.remote(validate_in_task).options(**resources, scheduling_strategy=place)
    try:
        metrics: dict[str, Any] = ray.get(task.remote(validate, name, options, all_cores))
    except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as death:
        say(f"validation of {name} died ({cause_of(death)}): training continues without its result")
        finish_validation(Folder(options["output_dir"]), name)
        return {}
    return metrics


def away_from_head(kind: str) -> NodeAffinitySchedulingStrategy | str:
    """Return a scheduling strategy that keeps a task off the head node if another node has a resource.

    The loss of the head node ends all jobs of a cluster, so nothing heavy may run there.

    Args:
        kind: "CPU" or "GPU".
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and HEAD_RESOURCE not in node["Resources"]]
    largest = max(nodes, key=lambda node: float(node["Resources"].get(kind, 0)), default=None)
    if largest is None or not largest["Resources"].get(kind):
        return "DEFAULT"
    return NodeAffinitySchedulingStrategy(largest["NodeID"], soft=True)


def validate_in_task(validate: Validate, name: str, options: dict[str, Any], all_cores: bool) -> dict[str, Any]:
    """Validate a checkpoint in this process, and return its metrics.

    On a GPU, the arithmetic is that of training. On a CPU, the process has a low priority, and uses one core unless
    `all_cores` is set.
    """
    import torch

    from audiodiff_platform.train.worker_process import set_float32

    if torch.cuda.is_available():
        set_float32(options["mixed_precision"])
    else:
        os.nice(10)
        torch.set_num_threads(len(os.sched_getaffinity(0)) if all_cores and hasattr(os, "sched_getaffinity") else 1)
    output, metrics = Folder(options["output_dir"]), {}
    try:
        begun = start_validation(output, name)
        if begun is None:
            return {}  # requested twice because workers died, and validated already
        if begun > MAX_TASKS:
            say(f"validation of {name} died {MAX_TASKS} times: training continues without its result")
        else:
            metrics = validate(name, options)
    except Exception:  # after a kill, the mark stays: Ray retries the task, or the caller removes the mark
        finish_validation(output, name)
        raise
    finish_validation(output, name)
    return metrics


def validate_remaining(validation: ValidationConfig, output: Folder) -> None:
    """Validate the checkpoints that are still in validation after training has ended."""
    for name in in_validation(output):
        say(f"validating {name} after training")
        try:
            validation.fn(None, name=name, **validation.task_config.fn_kwargs)
        except RayError as error:
            say(f"validation of {name} failed ({cause_of(error)}): training ends without its result")
            finish_validation(output, name)
