"""CPUs and GPUs that a job can use."""

from typing import Literal

import ray

from audiodiff_platform.cluster.private_ray import largest_cluster, started_here
from audiodiff_platform.entry.terminal import say

Device = Literal["auto", "cpu", "gpu"]


def require_resources(workers: int, gpus_each: int = 0, option: str = "num_workers") -> None:
    """Raise ValueError if the cluster can never have a CPU (and `gpus_each` GPUs) for each worker.

    A cluster whose limits Ray does not know may grow: the job then waits, and a line names the missing resources.
    """
    for kind, needed in (("CPU", workers), ("GPU", workers * gpus_each)):
        limit, present = _limit(kind), total(kind)
        if limit is not None and needed > limit:
            most = limit // max(1, needed // workers)
            raise ValueError(f"{option} {workers} needs {needed} {kind}s, the cluster has {limit}: use at most {most}")
        if needed > present:
            say(f"{option} {workers} needs {needed} {kind}s, the cluster has {present} now: waiting for it to grow")


def workers_for(asked: int | None, device: Device = "auto") -> tuple[int, int]:
    """Choose the number of workers of a job and the number of GPUs of each worker, and print both.

    Args:
        asked: The number of workers, or None for one on each GPU or CPU that nothing has reserved.
        device: "auto" uses GPUs if the cluster has any now.

    Raises:
        ValueError: The cluster can never have that many.
    """
    gpu = uses_gpus(device)
    kind = "GPU" if gpu else "CPU"
    workers = asked or max(1, free(kind))
    require_resources(workers, gpus_each=int(gpu))
    say(f"{workers} worker{'s' * (workers > 1)}, a {kind} each ({free(kind)} of {total(kind)} {kind}s are free)")
    return workers, int(gpu)


def uses_gpus(device: Device) -> bool:
    """Return True if work goes to GPUs: by choice, or because the cluster has one now."""
    return device == "gpu" or (device == "auto" and gpus() > 0)


def total(kind: str) -> int:
    """Return how much of the resource `kind` ("CPU", "GPU") the cluster has now."""
    return int(ray.cluster_resources().get(kind, 0))


def free(kind: str) -> int:
    """Return how much of the resource `kind` nothing has reserved, including what Ray knows that it can add."""
    growth = max(0, (_limit(kind) or 0) - total(kind))
    return int(ray.available_resources().get(kind, 0)) + growth


def cpus() -> int:
    """Return the number of CPUs that the cluster has or is known to be able to grow to, at least 1."""
    return max(1, total("CPU"), _limit("CPU") or 0)


def gpus() -> int:
    """Return the number of GPUs that the cluster has or is known to be able to grow to."""
    return max(total("GPU"), _limit("GPU") or 0)


def grows() -> bool:
    """Return True if Ray knows that the cluster can grow."""
    return any((_limit(kind) or 0) > total(kind) for kind in ("CPU", "GPU"))


def _limit(kind: str) -> int | None:
    """Return the most of a resource that the cluster can have, or None if Ray does not know."""
    if started_here():
        return total(kind)
    limits = largest_cluster()
    return None if limits is None else limits.get(kind, 0)
