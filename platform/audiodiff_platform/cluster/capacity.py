"""CPUs and GPUs of the cluster that a job can use."""

from typing import Literal

import ray

from audiodiff_platform.cluster.private_ray import largest_cluster, started_here
from audiodiff_platform.entry.terminal import say

Device = Literal["auto", "cpu", "gpu"]


def require_resources(workers: int, gpus_each: int = 0, option: str = "num_workers") -> None:
    """Require that the cluster has, or can grow to, one CPU and `gpus_each` GPUs for each worker.

    If resources are missing but the cluster may grow, a line on the terminal says that the job waits for them. If
    Ray does not know the maximum size of the cluster, the function assumes that the cluster may grow.

    Args:
        workers: The number of workers.
        gpus_each: The number of GPUs of each worker.
        option: The option that sets the number of workers, for the error message.

    Raises:
        ValueError: The cluster can never have enough CPUs or GPUs.
    """
    for kind, needed in (("CPU", workers), ("GPU", workers * gpus_each)):
        limit, present = _limit(kind), total(kind)
        if limit is not None and needed > limit:
            max_workers = limit // max(1, needed // workers)
            raise ValueError(
                f"{option} {workers} needs {needed} {kind}s, the cluster has {limit}: use at most {max_workers}"
            )
        if needed > present:
            say(f"{option} {workers} needs {needed} {kind}s, the cluster has {present} now: waiting for it to grow")


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
    kind = "GPU" if gpu else "CPU"
    workers = requested or max(1, free(kind))
    require_resources(workers, gpus_each=int(gpu))
    say(f"{workers} worker{'s' * (workers > 1)}, one {kind} each ({free(kind)} of {total(kind)} {kind}s are free)")
    return workers, int(gpu)


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


def cpus() -> int:
    """Return the number of CPUs of the cluster at its largest known size, at least 1."""
    return max(1, total("CPU"), _limit("CPU") or 0)


def gpus() -> int:
    """Return the number of GPUs of the cluster at its largest known size."""
    return max(total("GPU"), _limit("GPU") or 0)


def grows() -> bool:
    """Return True if Ray knows that the cluster can add CPUs or GPUs."""
    return any((_limit(kind) or 0) > total(kind) for kind in ("CPU", "GPU"))


def _limit(kind: str) -> int | None:
    """Return the largest amount of a resource that the cluster can have, or None if unknown."""
    if started_here():
        return total(kind)
    limits = largest_cluster()
    return None if limits is None else limits.get(kind, 0)
