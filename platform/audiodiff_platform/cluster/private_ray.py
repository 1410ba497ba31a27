"""Information that only private modules of Ray provide.

`tests/on_ray/test_private_ray.py` checks each item against the installed Ray.
"""

from importlib import import_module
from typing import Any

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable that Ray's job server sets for the entry point of a submitted job."""

HEAD_RESOURCE = "node:__internal_head__"
"""The resource by which Ray marks the head node."""


def started_here() -> bool:
    """Return True if this process started the head node of its cluster.

    The cluster then ends with this process.
    """
    node = import_module("ray._private.worker")._global_node
    return node is not None and bool(node.is_head())


def largest_cluster() -> dict[str, int] | None:
    """Return the largest amount of each resource that the cluster can have, or None if unknown."""
    limits: dict[str, int] | None = import_module("ray._private.state").state.get_max_resources_from_cluster_config()
    return limits


def serve_http_options() -> dict[str, Any] | None:
    """Return the HTTP options with which Ray Serve runs on the connected cluster, or None if it does not run."""
    context = import_module("ray.serve.context")
    client = context._get_global_client(raise_if_no_controller_running=False)
    return None if client is None else dict(client.http_config)
