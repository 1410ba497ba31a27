"""CPUs and GPUs of the cluster that a job can use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from audiodiff_platform.cluster.private_ray import largest_cluster, started_here
from audiodiff_platform.entry.terminal import say

Device = Literal["auto", "cpu", "gpu"]
ACCELERATOR_PREFIX = "accelerator_type:"
QUIET_SECONDS = 5  # of a wait, before a line on the terminal


@dataclass(frozen=True)
class WorkerResources:
    """Resources that each worker of a job reserves on its node.

    Args:
        cpus: Number of CPUs.
        gpus: Number of GPUs.
        accelerator_type: Kind of the GPUs as Ray names it, such as A100. None for any kind.
    """

    cpus: int = 1
    gpus: int = 0
    accelerator_type: str | None = None

    def __str__(self) -> str:
        cpus = f"{self.cpus} CPU{'s' * (self.cpus != 1)}"
        gpus = f"{self.gpus} {self.accelerator_type or ''} GPU{'s' * (self.gpus != 1)}".replace("  ", " ")
        return f"{cpus} and {gpus}" if self.gpus else cpus

    @property
    def amounts(self) -> dict[str, int]:
        """Amounts above 0 by kind, "CPU" and "GPU"."""
        return {kind: amount for kind, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}

    @property
    def bundle(self) -> dict[str, float]:
        """The reservation as Ray takes it."""
        kind = {} if self.accelerator_type is None else {accelerator_resource(self.accelerator_type): 0.001}
        return {**self.amounts, **kind}

    def fitting(self, node: Mapping[str, float]) -> int:
        """Return the number of workers that fit on a node with the resources `node`."""
        if self.accelerator_type is not None and accelerator_resource(self.accelerator_type) not in node:
            return 0
        return min(int(node.get(kind, 0)) // amount for kind, amount in self.amounts.items())


def require_resources(workers: int, each: WorkerResources, option: str = "num_workers") -> None:
    """Require that the cluster has, or can grow to, the resources of all workers.

    If resources are missing but the cluster may grow, a line on the terminal says that the job waits for them. If
    Ray does not know the maximum size of the cluster, the function assumes that the cluster may grow.

    Args:
        workers: The number of workers.
        each: The resources of each worker.
        option: The option that sets the number of workers, for the error message.

    Raises:
        ValueError: The cluster can never have the resources.
    """
    for kind, amount in each.amounts.items():
        needed, limit, present = workers * amount, _limit(kind), total(kind)
        if limit is not None and needed > limit:
            raise ValueError(
                f"{option} {workers} needs {needed} {kind}s, the cluster has {limit}: {_advice(limit // amount, each)}"
            )
        if needed > present:
            say(f"{option} {workers} needs {needed} {kind}s, the cluster has {present} now: waiting for it to grow")
            return
    fitting = sum(each.fitting(resources) for resources in nodes())
    if workers > fitting and started_here():
        raise ValueError(
            f"{option} {workers}: the nodes have room for {fitting} workers of {each}: {_advice(fitting, each)}"
        )
    if workers > fitting:
        say(f"{option} {workers}: the nodes have room for {fitting} workers of {each} now: waiting for more nodes")


def workers_for(requested: int | None, device: Device = "auto") -> tuple[int, int]:
    """Choose the number of workers of a job and the number of GPUs of each worker, and print both.

    Args:
        requested: The number of workers, or None for one worker on each unreserved GPU or CPU.
        device: The kind of processor. "auto" uses GPUs if the cluster has GPUs or is known to be able to
            add GPUs.

    Returns:
        The number of workers and the number of GPUs of each worker (0 or 1).

    Raises:
        ValueError: The cluster can never have enough CPUs or GPUs.
    """
    gpu = uses_gpus(device)
    kind, each = "GPU" if gpu else "CPU", WorkerResources(gpus=int(gpu))
    workers = requested or max(1, places(each))
    require_resources(workers, each)
    say(f"{workers} worker{'s' * (workers > 1)}, one {kind} each ({free(kind)} of {total(kind)} {kind}s are free)")
    return workers, int(gpu)


def places(each: WorkerResources) -> int:
    """Return the number of workers that fit into the unreserved resources of the cluster.

    The number includes nodes that Ray knows the cluster can add. Ray does not tell their shape: the function assumes
    that they have the CPUs for their GPUs.
    """
    unreserved = min(free(kind) // amount for kind, amount in each.amounts.items())
    added = min(max(0, (_limit(kind) or 0) - total(kind)) // amount for kind, amount in each.amounts.items())
    return min(unreserved, sum(each.fitting(resources) for resources in nodes()) + added)


def wait_for_places(workers: int, each: WorkerResources) -> None:
    """Wait until the cluster has unreserved resources for all workers at once.

    An autoscaler adds nodes for them meanwhile. A line on the terminal says that the job waits. Ctrl-C ends the wait.
    """
    group, seconds = placement_group([each.bundle] * workers), 0
    try:
        while not group.wait(timeout_seconds=1):
            seconds += 1
            if seconds == QUIET_SECONDS:
                say(f"waiting until the cluster has room for {workers} worker{'s' * (workers > 1)} of {each}")
    finally:
        remove_placement_group(group)


def nodes() -> list[dict[str, float]]:
    """Return the resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def accelerator_resource(accelerator_type: str) -> str:
    """Return the resource by which Ray marks the nodes with a kind of GPU."""
    return f"{ACCELERATOR_PREFIX}{accelerator_type}"


def uses_gpus(device: Device) -> bool:
    """Return True if a job with this `device` runs on GPUs."""
    return device == "gpu" or (device == "auto" and gpus() > 0)


def total(kind: str) -> int:
    """Return the amount of a resource ("CPU" or "GPU") that the cluster has now."""
    return int(ray.cluster_resources().get(kind, 0))


def free(kind: str) -> int:
    """Return the unreserved amount of a resource ("CPU" or "GPU").

    The amount includes nodes that Ray knows the cluster can add.
    """
    growth = max(0, (_limit(kind) or 0) - total(kind))
    return int(ray.available_resources().get(kind, 0)) + growth


def cpus_beside(workers: int) -> int:
    """Return the number of CPUs that are free beside GPU workers, at least 1.

    If Ray does not know the maximum size of the cluster, the nodes of the workers are assumed to bring another CPU for
    each worker.
    """
    return max(workers if _limit("CPU") is None else 1, free("CPU") - workers)


def cpus() -> int:
    """Return the number of CPUs of the cluster at its largest known size, at least 1."""
    return max(1, total("CPU"), _limit("CPU") or 0)


def gpus() -> int:
    """Return the number of GPUs of the cluster at its largest known size."""
    return max(total("GPU"), _limit("GPU") or 0)


def grows() -> bool:
    """Return True if Ray knows that the cluster can add CPUs or GPUs."""
    return any((_limit(kind) or 0) > total(kind) for kind in ("CPU", "GPU"))


def _advice(fitting: int, each: WorkerResources) -> str:
    """Return what to do if only `fitting` workers fit."""
    if fitting:
        return f"use at most {fitting}"
    return "set data_workers lower" if each.cpus > 1 else "set device cpu"


def _limit(kind: str) -> int | None:
    """Return the largest amount of a resource that the cluster can have, or None if unknown."""
    if started_here():
        return total(kind)
    limits = largest_cluster()
    return None if limits is None else limits.get(kind, 0)
