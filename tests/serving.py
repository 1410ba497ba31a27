"""Servers for tests."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from audiodiff_platform.serve.job import served
from audiodiff_platform.serve.options import ServeOptions

WAIT_S = 120


def free_port() -> int:
    """Return a TCP port of loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(**options: Any) -> Iterator[httpx.Client]:
    """Run a server on a free port, and yield a client."""
    port = free_port()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    with (
        served(ServeOptions(port=port, **options)),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S, limits=limits) as client,
    ):
        yield client


def sampled(client: httpx.Client, name: str, **labels: str) -> float:
    """Return the sum of the samples of a metric whose labels include some."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds.

    Args:
        condition: The condition.
        what: What it waits for, for the failure.
    """
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"timeout: {what}"
        time.sleep(0.05)
