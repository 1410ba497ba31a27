"""Ray Serve application of the server, for `jobs/serve.py` and for `serve deploy`."""

from collections.abc import Mapping
from typing import Any

import yaml
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from audiodiff_core.checkpoint import load_model
from audiodiff_core.sampling.batch_sizes import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from audiodiff_platform.cluster import WORKER_ENVIRONMENT, cpus, gpus
from audiodiff_platform.cluster.capacity import uses_gpus
from audiodiff_platform.entry.options import validated
from audiodiff_platform.serve.calls import ModelFacts
from audiodiff_platform.serve.generation import Generation
from audiodiff_platform.serve.ingress import Ingress
from audiodiff_platform.serve.middleware import key_hash
from audiodiff_platform.serve.options import Secrets, ServeOptions

APPLICATION = "audiodiff"
ROUTE_PREFIX = "/"
PROXY_LOCATION = "EveryNode"
DRAIN_MARGIN_S = 30.0
"""Time that a replica has to end, beyond the longest request."""
INGRESS_REQUESTS = 1_000
"""Requests at the same time per replica of the ingress, most of which wait for their loops."""
INGRESS_TARGET = 200
INGRESS_REPLICAS = 4
REFUSALS = 64
"""Requests at the same time, beyond those in the queue and the batch, that a generation replica refuses at once."""


def application(arguments: Mapping[str, Any]) -> Application:
    """Build the application, as `import_path` of a Serve configuration.

    Args:
        arguments: Options of serve by name, as text or typed.

    Raises:
        ValueError: An option is wrong, or a model cannot be loaded.
    """
    options = validated(ServeOptions, arguments, "arguments of the application")
    return application_of(options, facts_of(options))


def application_of(options: ServeOptions, models: tuple[ModelFacts, ...]) -> Application:
    """Build the application.

    Args:
        options: Options of the server.
        models: The served models.

    Raises:
        ValueError: If other machines can reach the server, and there is no key.
    """
    key = Secrets().api_key
    if key is None and not options.is_on_loopback:
        raise ValueError(
            f"host {options.host} is reachable from other machines: set AUDIODIFF_API_KEY, or use 127.0.0.1"
        )
    on_gpu = uses_gpus(options.device)
    batch = options.batch_size or (GPU_BATCH_SIZE if on_gpu else CPU_BATCH_SIZE)
    drain_s = options.max_wait_s + options.request_timeout_s + DRAIN_MARGIN_S
    replicas = options.max_replicas or max(1, options.min_replicas, most_replicas(options, on_gpu))
    generation = ray_serve.deployment(
        Generation,
        name="generation",
        max_ongoing_requests=batch * (1 + options.queue_batches) + REFUSALS,
        max_queued_requests=batch * (1 + options.queue_batches) + REFUSALS,
        graceful_shutdown_timeout_s=drain_s,
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas, max_replicas=replicas, target_ongoing_requests=batch
        ),
        ray_actor_options={"num_cpus": 1, "num_gpus": options.gpus_per_replica if on_gpu else 0},
        health_check_timeout_s=30,
        max_constructor_retry_count=3,
    )
    ingress = ray_serve.deployment(
        Ingress,
        name="ingress",
        max_ongoing_requests=INGRESS_REQUESTS,
        max_queued_requests=INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=drain_s,
        autoscaling_config=AutoscalingConfig(
            min_replicas=1, max_replicas=INGRESS_REPLICAS, target_ongoing_requests=INGRESS_TARGET
        ),
        ray_actor_options={"num_cpus": 0},
    )
    hashed = None if key is None else key_hash(key.get_secret_value())
    return ingress.bind(options, models, hashed, generation.bind(options, models, on_gpu))


def facts_of(options: ServeOptions) -> tuple[ModelFacts, ...]:
    """Load each model once, and return what the server tells about it.

    Raises:
        CheckpointError: A model cannot be loaded.
    """
    return tuple(_facts(name, path) for name, path in options.paths().items())


def most_replicas(options: ServeOptions, on_gpu: bool) -> int:
    """Return the number of generation replicas for which the cluster at its largest has room."""
    return int(gpus() / options.gpus_per_replica) if on_gpu else cpus()


def http_options(options: ServeOptions) -> dict[str, Any]:
    """Return the HTTP options of Ray Serve. Its time limit is the last resort behind those of the server."""
    limit_s = 2 * options.max_wait_s + options.request_timeout_s + DRAIN_MARGIN_S
    return {"host": options.host, "port": options.port, "request_timeout_s": limit_s}


def serve_yaml(options: ServeOptions) -> str:
    """Return the text of the configuration for `serve deploy`, and of serveConfigV2 of KubeRay."""
    stated = options.model_dump(mode="json", exclude_defaults=True, exclude={"yaml"})
    config = {
        "proxy_location": PROXY_LOCATION,
        "http_options": http_options(options),
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": ROUTE_PREFIX,
                "import_path": "audiodiff_platform.serve.application:application",
                "runtime_env": {"env_vars": dict(WORKER_ENVIRONMENT)},
                "args": stated,
            }
        ],
    }
    return yaml.safe_dump(config, sort_keys=False)


def _facts(name: str, path: str) -> ModelFacts:
    model = load_model(path)
    mel = model.mel
    dim = getattr(model.unet.config, "cross_attention_dim", None)
    return ModelFacts(name, path, model.digest, mel.sample_rate, mel.audio_size / mel.sample_rate, dim)
