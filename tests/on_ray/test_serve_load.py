"""Clients that leave, that send half a body, and that come in crowds."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from audiodiff_core.checkpoint import load_model
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from tests.serving import sampled, server, wait_for

pytestmark = [pytest.mark.workers, pytest.mark.soak_short]

CROWD = 200
BODY = {"steps": 4}


@pytest.fixture(scope="module")
def client(local_ray: None, model: Path) -> Iterator[httpx.Client]:
    with server(model=(f"tiny={model}",), max_replicas=1) as client:
        yield client


@pytest.fixture(scope="module")
def expected(model: Path) -> list[bytes]:
    """The audio of the seeds from 0 on."""
    profile = ExecutionProfile.here()
    profile.prepare_process()
    requests = [REQUEST.validate_python({**BODY, "seed": seed}) for seed in range(20)]
    outcomes = LoopPipeline.of(load_model(model), profile).generate(requests)
    return [loop.file(22_050, "wav") for loop in sorted(outcomes, key=lambda loop: loop.request.seed)]


def is_idle(client: httpx.Client) -> bool:
    return not sampled(client, "audiodiff_queue_length") and not sampled(client, "audiodiff_running_requests")


def test_a_crowd_that_leaves_costs_those_after_it_nothing(client: httpx.Client, expected: list[bytes]) -> None:
    def leave(seed: int) -> int:
        """Send a long request, and disconnect after 0.2 s. Return the status of an earlier refusal, or 0."""
        body = {"kind": "extend", "duration_s": 500, "steps": 500, "seed": seed}
        try:
            return httpx.post(f"{client.base_url}/v1/generate", json=body, timeout=0.2).status_code
        except httpx.TimeoutException:
            return 0

    for _ in range(3):
        with ThreadPoolExecutor(CROWD) as pool:
            assert set(pool.map(leave, range(CROWD))) <= {0, 503}
    wait_for(lambda: is_idle(client), "the requests of the crowd end")
    for seed in range(20):
        assert client.post("/v1/generate", json={**BODY, "seed": seed}).content == expected[seed]


def test_half_sent_bodies_occupy_no_slot(client: httpx.Client, expected: list[bytes]) -> None:
    address = (client.base_url.host, client.base_url.port)
    lines = (
        "POST /v1/generate HTTP/1.1",
        "Host: server",
        "Content-Type: application/json",
        "Content-Length: 99",
        "",
        "{",
    )
    with ExitStack() as sockets:
        for _ in range(64):
            half = sockets.enter_context(socket.create_connection(address))
            half.sendall("\r\n".join(lines).encode())
        assert is_idle(client)
        for seed in range(8):
            assert client.post("/v1/generate", json={**BODY, "seed": seed}).content == expected[seed]


def test_a_wrong_request_among_seven_good_ones_fails_alone(client: httpx.Client, expected: list[bytes]) -> None:
    bodies = [{**BODY, "seed": seed} for seed in range(7)] + [{**BODY, "width": 33}]
    together = threading.Barrier(len(bodies))

    def send(body: dict[str, int]) -> httpx.Response:
        together.wait()
        return client.post("/v1/generate", json=body)

    with ThreadPoolExecutor(len(bodies)) as pool:
        *good, wrong = pool.map(send, bodies)
    assert [answer.content for answer in good] == expected[:7]
    assert wrong.status_code == 422
