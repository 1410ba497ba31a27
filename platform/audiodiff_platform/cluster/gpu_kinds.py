"""GPUs of the cluster: their kinds, their memory and what they support."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from audiodiff_platform.cluster.capacity import ACCELERATOR_PREFIX, Device, WorkerResources, nodes, uses_gpus
from audiodiff_platform.cluster.connection import connected, runs_locally
from audiodiff_platform.cluster.private_ray import largest_cluster, started_here
from audiodiff_platform.entry.terminal import say

AMPERE_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Gpu:
    """Properties of a GPU, or the least of several GPUs.

    Args:
        name: CUDA device name.
        memory_bytes: Total memory.
        capability: Compute capability, such as (9, 0).
    """

    name: str
    memory_bytes: int
    capability: tuple[int, int]

    @property
    def supports_bf16(self) -> bool:
        """True if the GPU has bf16 arithmetic."""
        return self.capability >= AMPERE_CAPABILITY

    @property
    def supports_tf32(self) -> bool:
        """True if the GPU has TF32 arithmetic. Others compute float32 exactly."""
        return self.capability >= AMPERE_CAPABILITY


def least(gpus: Iterable[Gpu]) -> Gpu:
    """Return the smallest memory and the lowest compute capability, under the names of all GPUs."""
    found = list(gpus)
    return Gpu(
        " and ".join(sorted({gpu.name for gpu in found})),
        min(gpu.memory_bytes for gpu in found),
        min(gpu.capability for gpu in found),
    )


def runs_on_gpus(device: Device) -> bool:
    """Return True if a job with this `device` will run on GPUs. No local Ray is started to find out."""
    if device != "auto":
        return device == "gpu"
    if runs_locally() and not ray.is_initialized():
        return bool(gpus_here())
    with connected():
        return uses_gpus(device)


def gpus_here() -> list[Gpu]:
    """Return the GPUs that torch finds on this machine."""
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Gpu(gpu.name, gpu.total_memory, (gpu.major, gpu.minor)) for gpu in found]


def least_gpu(accelerator_type: str | None = None) -> Gpu:
    """Return the least GPU of the live nodes, as tasks on these nodes find it.

    Args:
        accelerator_type: Kind of the GPUs as Ray names it. None for all kinds.

    Raises:
        ValueError: torch finds no GPU on a node that has GPUs.
    """
    hosts = [node for node in ray.nodes() if node["Alive"] and _holds(node["Resources"], accelerator_type)]
    # The task requests no GPU: it need not wait for one, and Ray does not hide the GPUs from it.
    probe = ray.remote(num_cpus=0)(gpus_here)
    found: list[list[Gpu]] = ray.get([probe.options(scheduling_strategy=_on(node)).remote() for node in hosts])
    for node, gpus in zip(hosts, found, strict=True):
        if not gpus:
            count = node["Resources"]["GPU"]
            raise ValueError(
                f"node {node['NodeManagerAddress']} has {count:g} GPUs, but torch finds none there: "
                "install the driver and a torch that is built for CUDA, or set device cpu"
            )
    return least(gpu for gpus in found for gpu in gpus)


def cpus_per_gpu(accelerator_type: str | None = None) -> int | None:
    """Return the CPUs for each GPU of the live node with the fewest, or None if no live node has GPUs."""
    return min(
        (
            int(resources.get("CPU", 0) // resources["GPU"])
            for resources in nodes()
            if _holds(resources, accelerator_type)
        ),
        default=None,
    )


def require_accelerator_type(accelerator_type: str | None) -> None:
    """Require that a node has GPUs of this kind, or can join with them.

    If no kind is required and the live nodes have several, a line on the terminal names them.

    Args:
        accelerator_type: Kind of the GPUs as Ray names it. None for any kind.

    Raises:
        ValueError: No node has GPUs of this kind, and none can join.
    """
    present = _kinds(resources for resources in nodes() if _holds(resources, None))
    if accelerator_type is None:
        if len(present) > 1:
            say(
                f"the cluster has GPUs of several kinds ({', '.join(present)}): "
                "the slowest sets the pace of all; accelerator_type selects one kind"
            )
        return
    limits = largest_cluster()
    # Ray Train checks the kind against the limits, too.
    known = present if limits is None else _kinds([limits])
    if accelerator_type in known:
        return
    if started_here() or limits is not None:
        advice = f"use {' or '.join(known)}" if known else "leave accelerator_type out, Ray knows the kind of no GPU"
        raise ValueError(f"accelerator_type {accelerator_type}: the cluster has no GPU of this kind: {advice}")
    say(f"accelerator_type {accelerator_type}: no node has GPUs of this kind now: waiting for one")


def _kinds(nodes_resources: Iterable[Any]) -> list[str]:
    """Return the kinds of GPUs in the resources of nodes, sorted."""
    return sorted(
        {
            name.removeprefix(ACCELERATOR_PREFIX)
            for resources in nodes_resources
            for name, amount in resources.items()
            if name.startswith(ACCELERATOR_PREFIX) and amount
        }
    )


def _holds(resources: dict[str, float], accelerator_type: str | None) -> bool:
    """Return True if a node has a GPU of a kind."""
    return WorkerResources(cpus=0, gpus=1, accelerator_type=accelerator_type).fitting(resources) > 0


def _on(node: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
