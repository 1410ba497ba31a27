"""The HTTP interface under requests that nobody would write: generated from its description, and malformed uploads."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving import sampled, server

pytestmark = [pytest.mark.workers, pytest.mark.soak]

KEY = "a key for generated requests"


@pytest.fixture(scope="module")
def client(
    local_ray: None, model: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client with a key of a server that allows short requests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIODIFF_API_KEY", KEY)
        options: dict[str, Any] = {"model": (f"tiny={model}",), "encoder": (f"small={encoder}",), "max_replicas": 1}
        options |= {"max_steps": 2, "max_duration_s": 4, "max_upload_mb": 1}
        with server(**options, results_dir=str(tmp_path_factory.mktemp("results"))) as client:
            client.headers["Authorization"] = f"Bearer {KEY}"
            yield client


CONFIGURATION = """
[[operations]]
include-path-regex = "^/v1/(generate|jobs|variations|inpaint|extend|remix|interpolate|encode)$"
[operations.checks]
positive_data_acceptance.enabled = false
"""
"""Routes that take audio, of which no schema describes the valid."""


@pytest.mark.parametrize(("phases", "examples"), [("fuzzing,stateful", 10), ("coverage", 1)])
def test_responses_are_as_described(client: httpx.Client, tmp_path: Path, phases: str, examples: int) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(configuration), "run"]
    command += [f"{client.base_url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"]
    command += [
        "--phases",
        phases,
        "--max-examples",
        str(examples),
        "--seed",
        "1",
        "--request-timeout",
        "60",
        "--no-color",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1_200, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_malformed_uploads_cost_their_request_only(client: httpx.Client, loops: Path) -> None:
    draw = random.Random(0)
    good = [file.read_bytes()[:200_000] for file in sorted(loops.glob("*.flac"))]
    routes = ("variations", "inpaint", "extend", "remix", "interpolate", "encode")
    statuses = set()

    def malformed() -> bytes:
        content = bytearray(draw.choice(good))
        kind = draw.randrange(4)
        if kind == 0:
            return draw.randbytes(draw.randrange(2_000))
        if kind == 1:
            return bytes(content[: draw.randrange(len(content))])
        for _ in range(draw.randrange(1, 200) if kind == 2 else 2_000):
            content[draw.randrange(64 if kind == 2 else len(content))] = draw.randrange(256)
        return bytes(content)

    def memory() -> float:
        return sampled(client, "process_resident_memory_bytes")

    def send() -> None:
        route = draw.choice(routes)
        content = malformed()
        fields = {} if route == "encode" else {"steps": "1", "seed": "1", "kind": draw.choice(["", "vary", "x"])}
        fields |= {"regenerate": "[[0, 0.1]]"} if route == "inpaint" else {}
        count = 2 if route == "interpolate" else 1
        files = [("audio", (draw.choice(["a", "a.wav", "../../a", "\u00e9\n"]), content))] * count
        answer = client.post(f"/v1/{route}", data=fields, files=files)
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 422, 503), answer.text
        if answer.status_code != 200:
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}

    replicas = sampled(client, "audiodiff_replicas")
    began = {process.pid for process in psutil.Process().children(recursive=True)}
    for _ in range(100):
        send()
    before = memory()
    for _ in range(900):
        send()
    assert {422} <= statuses
    assert memory() - before < 64e6, "the replicas keep memory of malformed uploads"
    assert sampled(client, "audiodiff_replicas") == replicas
    assert sampled(client, "audiodiff_running_requests") == sampled(client, "audiodiff_queue_length") == 0
    assert client.post("/v1/generate", json={"steps": 1, "seed": 1}).status_code == 200
    assert len({process.pid for process in psutil.Process().children(recursive=True)} - began) < 10
