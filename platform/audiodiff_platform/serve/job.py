"""The verb `serve` on one machine or cluster: start the application, wait for a signal, and delete the application."""

import errno
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import serve as ray_serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ApplicationStatus

from audiodiff_core.checkpoint import MODEL_INDEX
from audiodiff_platform.cluster import (
    WorkerResources,
    connected,
    encoder_source,
    require_resources,
    require_shared,
    usable_encoder,
    usable_path,
)
from audiodiff_platform.cluster.capacity import uses_gpus
from audiodiff_platform.cluster.private_ray import serve_http_options
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.serve.application import (
    APPLICATION,
    PROXY_LOCATION,
    ROUTE_PREFIX,
    application_of,
    encoding_replicas,
    facts_of,
    http_options,
    most_replicas,
    serve_yaml,
)
from audiodiff_platform.serve.options import ServeOptions, required_key
from audiodiff_platform.serve.result_folder import made


def serve(options: ServeOptions) -> dict[str, Any]:
    """Run the server until SIGINT (Ctrl-C) or SIGTERM, or write its configuration.

    Args:
        options: Options of the server.

    Returns:
        The summary as JSON values: the names of the models.

    Raises:
        ValueError: A model cannot be loaded, an API key is required and not set, the address cannot be used, or the
            cluster is too small.
    """
    required_key(options)
    models = tuple(f"{name}={usable_path('model', path, hub_id=True)}" for name, path in options.paths().items())
    paths = {name: _usable(name, getattr(options, name)) for name in ("key_file", "results_dir")}
    encoders = tuple(f"{name}={usable_encoder(path)}" for name, path in options.encoder_paths().items())
    options = options.model_copy(update={"model": models, "encoder": encoders, **paths})
    if options.yaml is not None:
        Path(options.yaml).write_text(serve_yaml(options))
        return {"verb": "serve", "models": list(options.paths()), "yaml": options.yaml}
    with connected(), served(options):
        url = f"http://{options.host}:{options.port}"
        say(f"serving {', '.join(options.paths())} at {url}/v1/generate (press Ctrl-C to stop)")
        _wait_for_signal()
        say("stopping")
    return {"verb": "serve", "models": list(options.paths())}


def _usable(option: str, path: str | None) -> str | None:
    return None if path is None else usable_path(option, path)


@contextmanager
def served(options: ServeOptions) -> Iterator[None]:
    """Run the application on the connected Ray cluster.

    At the end, the application is deleted. Ray Serve itself is shut down only if it did not run before.

    Args:
        options: Options of the server. Paths of models are absolute.

    Raises:
        ValueError: As `serve`.
    """
    facts = facts_of(options)
    on_gpu = uses_gpus(options.device)
    replicas = options.max_replicas or max(1, options.min_replicas, most_replicas(options, on_gpu))
    whole_gpus = options.gpus_per_replica == 1
    if whole_gpus or not on_gpu:
        require_resources(replicas, WorkerResources(gpus=int(on_gpu)), option="max_replicas")
    if options.encoder:
        together = encoding_replicas(options) + (0 if on_gpu else replicas)
        require_resources(together, WorkerResources(), option="max_encoding_replicas")
    for path in options.paths().values():
        require_shared("model", path, MODEL_INDEX)
    if options.key_file is not None:
        require_shared("key_file", options.key_file, "")
    if options.results_dir is not None:
        made(options.results_dir)
        require_shared("results_dir", options.results_dir, "")
    for path in options.encoder_paths().values():
        require_shared("encoder", encoder_source(path), "config.json")
    application = application_of(options, facts)
    running = serve_http_options()
    if running is None:
        _require_address(options.host, options.port)
    else:
        _require_equal(running, http_options(options))
        status = ray_serve.status().applications.get(APPLICATION)
        if status is not None and status.status not in (ApplicationStatus.NOT_STARTED, ApplicationStatus.DEPLOY_FAILED):
            raise ValueError(f"application {APPLICATION} runs on this cluster already: stop it first")
    try:
        ray_serve.start(proxy_location=PROXY_LOCATION, http_options=HTTPOptions(**http_options(options)))
        ray_serve.run(application, name=APPLICATION, route_prefix=ROUTE_PREFIX)
        yield
    finally:
        if running is None:
            ray_serve.shutdown()
        else:
            ray_serve.delete(APPLICATION)


def _require_address(host: str, port: int) -> None:
    """Raise ValueError if this machine cannot listen on an address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise ValueError(f"host {host}: is not known ({error.strerror})") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(
                    f"port {port} of {host} is taken: stop the other program, or set another port"
                ) from None
            if error.errno == errno.EADDRNOTAVAIL:
                raise ValueError(
                    f"host {host} is not an address of this machine: use 127.0.0.1, 0.0.0.0 or its own address"
                ) from None
            raise ValueError(f"port {port} of {host} cannot be used ({error.strerror}): set another port") from error


def _require_equal(running: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ValueError if Ray Serve runs with other HTTP options, which it would silently keep."""
    for name, value in wanted.items():
        if running[name] != value:
            raise ValueError(
                f"Ray Serve runs on this cluster with {name} {running[name]}, not {value}: "
                f"use equal options, or stop it with `serve shutdown`"
            )


def _wait_for_signal() -> None:
    stopped = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    stopped.wait()
    for number, handler in previous.items():
        signal.signal(number, handler)
