"""Kills of replicas and proxies, new deployments and scaling, while clients send requests.

Each test prints the time until the server had recovered.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray import serve as ray_serve

from audiodiff_core.checkpoint import load_model
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from audiodiff_platform.serve import application as serve_application
from audiodiff_platform.serve.application import (
    APPLICATION,
    ROUTE_PREFIX,
    application_of,
    facts_of,
    generation_settings,
)
from audiodiff_platform.serve.options import ServeOptions
from tests.serving import free_port, sampled, server, wait_for
from tests.simulated import ROOT, SimulatedCluster

pytestmark = [pytest.mark.workers, pytest.mark.soak]

BODY = {"steps": 8}
SEEDS = 16


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[int, bytes]:
    """The audio of each seed."""
    profile = ExecutionProfile.here()
    profile.prepare_process()
    requests = [REQUEST.validate_python({**BODY, "seed": seed}) for seed in range(SEEDS)]
    outcomes = LoopPipeline.of(load_model(model), profile).generate(requests)
    return {loop.request.seed: loop.file(22_050, "wav") for loop in outcomes}


@dataclass
class Answer:
    """What a client got: times of the request, the status (None for a broken connection), and whether it is right."""

    began: float
    ended: float
    status: int | None
    is_right: bool


@dataclass
class Crowd:
    """Clients that send one request after the other until they are told to stop."""

    url: Any
    expected: dict[int, bytes]
    clients: int = 6
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self) -> "Crowd":
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def served_after(self, moment: float, count: int) -> bool:
        """Return whether `count` requests that began after a moment were answered."""
        return sum(answer.status == 200 and answer.began > moment for answer in list(self.answers)) >= count

    def _send(self, number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self._over.is_set():
                seed, began = chance.randrange(SEEDS), time.monotonic()
                try:
                    response = client.post("/v1/generate", json={**BODY, "seed": seed})
                    status: int | None = response.status_code
                    is_right = (
                        response.content == self.expected[seed] if status == 200 else "retry-after" in response.headers
                    )
                except httpx.TransportError:
                    status, is_right = None, True
                self.answers.append(Answer(began, time.monotonic(), status, is_right))


@pytest.fixture
def client(local_ray: None, model: Path) -> Iterator[httpx.Client]:
    with server(model=(f"tiny={model}",), min_replicas=2, max_replicas=2) as client:
        yield client


def processes(title: str) -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if title in " ".join(child.as_dict(["cmdline"])["cmdline"] or ())]


def failures(crowd: Crowd) -> list[Answer]:
    assert all(answer.is_right for answer in crowd.answers), [one for one in crowd.answers if not one.is_right]
    return [answer for answer in crowd.answers if answer.status != 200]


def test_a_killed_replica_costs_the_requests_that_it_worked_on(
    client: httpx.Client, expected: dict[int, bytes]
) -> None:
    with Crowd(client.base_url, expected) as crowd:
        wait_for(lambda: crowd.served_after(0, 20), "the crowd is served")
        killed = time.monotonic()
        processes("ServeReplica:audiodiff:generation")[0].kill()
        wait_for(lambda: sampled(client, "audiodiff_replicas", deployment="generation") == 1, "one replica")
        wait_for(lambda: sampled(client, "audiodiff_replicas", deployment="generation") == 2, "two replicas")
        print(f"\ntwo replicas {time.monotonic() - killed:.1f} s after the kill of one")
        wait_for(lambda: crowd.served_after(killed, 40), "the crowd is served again")
    failed = failures(crowd)
    assert {answer.status for answer in failed} <= {503}
    assert len(failed) <= crowd.clients
    assert all(answer.began < killed for answer in failed), (killed, failed)


def test_a_killed_proxy_costs_the_requests_that_it_held(client: httpx.Client, expected: dict[int, bytes]) -> None:
    with Crowd(client.base_url, expected) as crowd:
        wait_for(lambda: crowd.served_after(0, 20), "the crowd is served")
        killed = time.monotonic()
        (proxy,) = processes("ProxyActor")
        proxy.kill()
        wait_for(lambda: crowd.served_after(killed, 40), "the crowd is served again")
    recovered = min(answer.ended for answer in crowd.answers if answer.status == 200 and answer.began > killed)
    print(f"\nserved again {recovered - killed:.1f} s after the kill of the proxy")
    assert all(answer.began < recovered and answer.status in (None, 503) for answer in failures(crowd))


def test_a_killed_node_costs_the_requests_that_it_held(model: Path, expected: dict[int, bytes], tmp_path: Path) -> None:
    cluster, port = SimulatedCluster(nodes=2), free_port()
    options = ["--model", f"tiny={model}", "--port", str(port), "--min_replicas", "2", "--max_replicas", "2"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.cluster.address}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([sys.executable, "jobs/serve.py", *options], cwd=ROOT, env=environment, stderr=log) as serving,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            wait_for(lambda: "press Ctrl-C" in (tmp_path / "log").read_text(), "the server runs")
            with Crowd(client.base_url, expected) as crowd:
                wait_for(lambda: crowd.served_after(0, 20), "the crowd is served")
                killed = time.monotonic()
                cluster.kill_node(random.Random(0))
                wait_for(lambda: crowd.served_after(killed, 40), "the crowd is served again")
                wait_for(lambda: replicas_of(client) == 2, "two replicas")
                print(f"\ntwo replicas {time.monotonic() - killed:.1f} s after the kill of a node")
        finally:
            serving.terminate()
            serving.wait(60)
            cluster.cluster.shutdown()
    failed = failures(crowd)
    print(
        f"{len(failed)} requests failed, the last {max([a.ended for a in failed], default=killed) - killed:.1f} s after"
    )
    assert {answer.status for answer in failed} <= {None, 503}
    assert len(failed) <= 2 * crowd.clients


def replicas_of(client: httpx.Client) -> float:
    """Return the number of generation replicas, or 0 while the server does not answer."""
    try:
        return sampled(client, "audiodiff_replicas", deployment="generation")
    except (httpx.TransportError, ValueError):
        return 0.0


def test_a_new_deployment_costs_no_request(client: httpx.Client, model: Path, expected: dict[int, bytes]) -> None:
    options = ServeOptions(
        model=(f"tiny={model}",), port=client.base_url.port or 0, min_replicas=2, max_replicas=2, queue_batches=5
    )
    before = {process.pid for process in processes("ServeReplica:audiodiff")}
    with Crowd(client.base_url, expected) as crowd:
        wait_for(lambda: crowd.served_after(0, 20), "the crowd is served")
        ray_serve.run(application_of(options, facts_of(options)), name=APPLICATION, route_prefix=ROUTE_PREFIX)
        wait_for(lambda: not before & {process.pid for process in processes("ServeReplica:audiodiff")}, "new replicas")
        wait_for(lambda: crowd.served_after(time.monotonic(), 0), "the crowd is served")
    assert failures(crowd) == []


def test_replicas_come_with_requests_and_go_without(
    local_ray: None, model: Path, expected: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def soon(options: ServeOptions, on_gpu: bool) -> dict[str, Any]:
        settings = generation_settings(options, on_gpu)
        scaling = settings["autoscaling_config"].model_copy(
            update={
                "upscale_delay_s": 0.5,
                "downscale_delay_s": 2.0,
                "downscale_to_zero_delay_s": 2.0,
                "look_back_period_s": 2.0,
            }
        )
        return {**settings, "autoscaling_config": scaling}

    monkeypatch.setattr(serve_application, "generation_settings", soon)

    def replicas() -> int:
        return len(processes("ServeReplica:audiodiff:generation"))

    with server(model=(f"tiny={model}",), min_replicas=0, max_replicas=3, max_wait_s=60) as client:
        wait_for(lambda: replicas() == 0, "no replica")
        assert client.get("/readyz").status_code == 200
        began = time.monotonic()
        assert client.post("/v1/generate", json={**BODY, "seed": 3}).content == expected[3]
        print(f"\nfrom 0 to 1: answered after {time.monotonic() - began:.1f} s")
        with Crowd(client.base_url, expected, clients=12) as crowd:
            wait_for(lambda: replicas() > 1, "more replicas")
            print(f"several replicas after {time.monotonic() - began:.1f} s")
        assert failures(crowd) == []
        wait_for(lambda: replicas() == 0, "no replica")
        assert client.post("/v1/generate", json={**BODY, "seed": 4}).content == expected[4]
