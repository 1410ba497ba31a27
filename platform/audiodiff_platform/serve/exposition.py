"""Metrics of all replicas as one Prometheus text."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from audiodiff_platform.serve.metrics import Families

WITHIN_S = 2.0
"""Time in which a replica tells its metrics."""

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class ReplicaMetrics:
    """Metrics of a replica.

    Attributes:
        deployment: Name of the deployment.
        replica: Name of the replica, which is never given again.
        families: The metrics.
    """

    deployment: str
    replica: str
    families: Families

    @classmethod
    def here(cls, families: Families) -> Self:
        """Return the metrics of the replica in this process."""
        context = ray_serve.get_replica_context()
        return cls(context.deployment, context.replica_id.unique_id, families)


async def metrics_of(handles: Mapping[str, DeploymentHandle]) -> list[ReplicaMetrics]:
    """Return the metrics of all running replicas of some deployments, by calls of their method `metrics`.

    A deployment of which a replica does not answer within WITHIN_S is left out, and `audiodiff_replicas` is 0 for it.
    """
    answers = await asyncio.gather(*(_answers(name, handle) for name, handle in handles.items()))
    return [metrics for answer in answers for metrics in answer]


async def _answers(deployment: str, handle: DeploymentHandle) -> list[ReplicaMetrics]:
    try:
        answers = await handle.broadcast("metrics").results_async(timeout_s=WITHIN_S, return_exceptions=True)
    except (TimeoutError, RayError, RayServeException) as error:  # also a deployment without replicas
        logger.warning("no metrics of %s: %s", deployment, type(error).__name__)
        return []
    return [answer for answer in answers if isinstance(answer, ReplicaMetrics)]


def exposition(deployments: Iterable[str], replicas: Iterable[ReplicaMetrics], accept: str) -> tuple[bytes, str]:
    """Return the metrics of replicas as text, with the labels `deployment` and `replica`.

    Args:
        deployments: Names of the deployments. `audiodiff_replicas` states how many replicas of each are included.
        replicas: The metrics.
        accept: Value of the header Accept, which selects the format.

    Returns:
        The text, and its media type.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Joined(tuple(deployments), tuple(replicas)))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _Joined(Collector):
    def __init__(self, deployments: tuple[str, ...], replicas: tuple[ReplicaMetrics, ...]) -> None:
        self._deployments, self._replicas = deployments, replicas

    def collect(self) -> Iterator[Metric]:
        """Yield each family once, with the samples of all replicas."""
        counts = GaugeMetricFamily("audiodiff_replicas", "Replicas that told their metrics.", labels=("deployment",))
        for deployment in self._deployments:
            counts.add_metric([deployment], sum(replica.deployment == deployment for replica in self._replicas))
        yield counts
        joined: dict[str, Metric] = {}
        for replica in self._replicas:
            labels = {"deployment": replica.deployment, "replica": replica.replica}
            for family in replica.families:
                target = joined.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        target.samples.append(sample._replace(labels={**sample.labels, **labels}))
        yield from joined.values()
