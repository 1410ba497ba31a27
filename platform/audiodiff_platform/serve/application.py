"""Ray Serve application of the server, for `jobs/serve.py` and for `serve deploy`."""

from dataclasses import replace
from typing import Any

import yaml
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import EncodingType, LoggingConfig

from audiodiff_core.checkpoint import load_model
from audiodiff_core.embeddings.inputs import ENCODER_BATCH_SIZE
from audiodiff_core.latents import latent_shape
from audiodiff_core.sampling.batch_sizes import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from audiodiff_platform.cluster import WORKER_ENVIRONMENT, cpus, gpus
from audiodiff_platform.cluster.capacity import nodes, uses_gpus
from audiodiff_platform.serve.calls import ModelFacts
from audiodiff_platform.serve.encoding import Encoding, encoder_facts
from audiodiff_platform.serve.generation import Generation
from audiodiff_platform.serve.ingress import Ingress
from audiodiff_platform.serve.keys import ApiKeys
from audiodiff_platform.serve.middleware import body_timeout_s, largest_body
from audiodiff_platform.serve.options import ServeOptions, required_key
from audiodiff_platform.serve.result_folder import results_dir

APPLICATION = "audiodiff"
ROUTE_PREFIX = "/"
PROXY_LOCATION = "EveryNode"
DRAIN_MARGIN_S = 30.0
"""Time that a replica has to end, beyond the longest request."""
INGRESS_REQUESTS = 1_000
"""Requests at the same time per replica of the ingress, most of which wait for their loops."""
INGRESS_TARGET = 200
INGRESS_REPLICAS = 4
YAML_HEADER = """\
# Server of loops on a Ray cluster, written by `python jobs/serve.py --model NAME=PATH ... --yaml FILE`.
#
#   serve deploy cluster/serve.yaml   once, and again after each change: replicas are replaced without losing a request
#   serve status                      HEALTHY when a replica has loaded the models
#
# The text is also the serveConfigV2 of a RayService of KubeRay. Replace each value that contains YOUR, or write the
# file with your options. `args` takes every option of jobs/serve.py. A host other than 127.0.0.1 needs key_file, or
# AUDIODIFF_API_KEY in the environment of the nodes. Jobs need results_dir, a store or a folder that the nodes share.
# Replicas of generation take one CPU, or gpus_per_replica of a GPU.
"""
ENCODING_REQUESTS = 8 * ENCODER_BATCH_SIZE
"""Requests at the same time per replica of the encoders, most of which wait."""
REFUSALS = 64
"""Requests at the same time, beyond those in the queue and the batch, that a generation replica refuses at once."""


def application(options: ServeOptions) -> Application:
    """Build the application, as `import_path` of a Serve configuration, whose `args` are the options.

    Raises:
        ValueError: A model cannot be loaded, or an API key is required and not set.
    """
    return application_of(options, facts_of(options))


def application_of(options: ServeOptions, models: tuple[ModelFacts, ...]) -> Application:
    """Build the application.

    Args:
        options: Options of the server.
        models: The served models.

    Raises:
        ValueError: If other machines can reach the server, and there is no key, or the key file is not valid.
    """
    key = required_key(options)
    ApiKeys(key, options.key_file)
    options = options.model_copy(update={"results_dir": results_dir(options)})
    on_gpu = uses_gpus(options.device)
    generation = ray_serve.deployment(Generation, name="generation", **generation_settings(options, on_gpu))
    ingress = ray_serve.deployment(Ingress, name="ingress", **ingress_settings(options, len(nodes())))
    generating = generation.bind(options, models, on_gpu)
    encoders = tuple(encoder_facts(name, path) for name, path in options.encoder_paths().items())
    if not encoders:
        return ingress.bind(options, models, key, generating)
    encoding = ray_serve.deployment(Encoding, name="encoding", **encoding_settings(options))
    return ingress.bind(options, models, key, generating, encoders=encoders, encoding=encoding.bind(options, encoders))


def generation_settings(options: ServeOptions, on_gpu: bool) -> dict[str, Any]:
    """Return the settings of the generation deployment.

    A replica takes more requests than its batch and its queue have room for, so that it refuses the others itself, at
    once. The target of the autoscaler is the batch size of the replicas, which may have other devices than this node.
    """
    batch = options.batch_size or (GPU_BATCH_SIZE if on_gpu else CPU_BATCH_SIZE)
    replicas = options.max_replicas or max(1, options.min_replicas, most_replicas(options, on_gpu))
    room = batch * (1 + options.queue_batches) + REFUSALS
    return {
        "max_ongoing_requests": room,
        "max_queued_requests": room,
        "graceful_shutdown_timeout_s": drain_s(options),
        "autoscaling_config": AutoscalingConfig(
            min_replicas=options.min_replicas, max_replicas=replicas, target_ongoing_requests=batch
        ),
        "ray_actor_options": {"num_cpus": 1, "num_gpus": options.gpus_per_replica if on_gpu else 0},
        "max_constructor_retry_count": 3,
        "logging_config": LoggingConfig(encoding=EncodingType.JSON),
    }


def encoding_settings(options: ServeOptions) -> dict[str, Any]:
    """Return the settings of the encoding deployment, whose replicas have one CPU."""
    return {
        "max_ongoing_requests": ENCODING_REQUESTS,
        "max_queued_requests": ENCODING_REQUESTS,
        "graceful_shutdown_timeout_s": drain_s(options),
        "autoscaling_config": AutoscalingConfig(
            min_replicas=options.min_encoding_replicas,
            max_replicas=options.max_encoding_replicas,
            target_ongoing_requests=ENCODER_BATCH_SIZE,
        ),
        "ray_actor_options": {"num_cpus": 1},
        "max_constructor_retry_count": 3,
        "logging_config": LoggingConfig(encoding=EncodingType.JSON),
    }


def ingress_settings(options: ServeOptions, node_count: int) -> dict[str, Any]:
    """Return the settings of the ingress deployment. Its replicas mostly wait, and reserve no CPU.

    On several nodes there are at least two, so that the loss of a node leaves one. With limits of keys, one replica
    counts the requests of all.
    """
    most = 1 if options.limits.is_any else INGRESS_REPLICAS
    return {
        "max_ongoing_requests": INGRESS_REQUESTS,
        "max_queued_requests": INGRESS_REQUESTS,
        "graceful_shutdown_timeout_s": drain_s(options),
        "autoscaling_config": AutoscalingConfig(
            min_replicas=min(2, node_count, most),
            max_replicas=most,
            target_ongoing_requests=INGRESS_TARGET,
        ),
        "ray_actor_options": {"num_cpus": 0},
        "logging_config": LoggingConfig(encoding=EncodingType.JSON, enable_access_log=False),  # it logs more itself
    }


def drain_s(options: ServeOptions) -> float:
    """Return the time in which a replica that is to end finishes its requests."""
    return 2 * options.max_wait_s + options.request_timeout_s + DRAIN_MARGIN_S


def facts_of(options: ServeOptions) -> tuple[ModelFacts, ...]:
    """Load each model once, and return what the server tells about it.

    Raises:
        CheckpointError: A model cannot be loaded.
    """
    return tuple(_facts(name, path) for name, path in options.paths().items())


def most_replicas(options: ServeOptions, on_gpu: bool) -> int:
    """Return the number of generation replicas for which the cluster at its largest has room."""
    if on_gpu:
        return int(gpus() / options.gpus_per_replica)
    return cpus() - encoding_replicas(options)


def encoding_replicas(options: ServeOptions) -> int:
    """Return the largest number of replicas of the encoders."""
    return options.max_encoding_replicas if options.encoder else 0


def http_options(options: ServeOptions) -> dict[str, Any]:
    """Return the HTTP options of Ray Serve. Its time limit is the last resort behind those of the server."""
    longest_s = body_timeout_s(largest_body(options.max_upload_mb * 1_000_000)) + drain_s(options)
    return {"host": options.host, "port": options.port, "request_timeout_s": round(longest_s, 1)}


def serve_yaml(options: ServeOptions) -> str:
    """Return the text of the configuration for `serve deploy`, which is also that of serveConfigV2 of KubeRay.

    Args:
        options: Options of the server. Paths of models are those on the cluster.
    """
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
    return YAML_HEADER + yaml.safe_dump(config, sort_keys=False)


def _facts(name: str, path: str) -> ModelFacts:
    model = load_model(path)
    mel = model.mel
    dim = getattr(model.unet.config, "cross_attention_dim", None)
    encoder = None if model.record is None or model.record.encoder is None else model.record.encoder.digest
    duration_s = mel.audio_size / mel.sample_rate
    latents = None if model.vae is None else latent_shape(model.vae, mel.y_res, mel.x_res)
    facts = ModelFacts(name, path, model.digest, mel.sample_rate, duration_s, mel.x_res, dim, encoder, latents)
    if model.record is None or model.record.conditions is None:
        return facts
    return replace(facts, conditions=model.record.conditions.names, ranges=model.record.conditions.ranges)
