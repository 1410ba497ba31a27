"""Keys, limits, jobs, idempotent requests and origins over real HTTP, with the Python client."""

import base64
import io
import json
import os
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from audiodiff_core.checkpoint import load_model
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from audiodiff_platform.client import (
    AuthenticationError,
    Client,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    RateLimitError,
    Retries,
)
from audiodiff_platform.serve import key_file
from audiodiff_platform.serve.job import served
from audiodiff_platform.serve.options import ServeOptions
from tests.serving import free_port, sampled

pytestmark = pytest.mark.workers

ORIGIN = "https://music.example.com"
ENDLESS = {"kind": "extend", "duration_s": 50, "steps": 1_000, "seed": 1}


@dataclass
class Server:
    """A running server, and the keys of its clients by name."""

    url: str
    keys: str
    results: Path
    secrets: dict[str, str]

    def client(self, name: str, most: int = 0) -> Client:
        return Client(self.url, api_key=self.secrets[name], timeout_s=120, retries=Retries(most=most))

    def http(self, name: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.secrets[name]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)


@pytest.fixture(scope="module")
def server(local_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    keys = str(folder / "keys")
    secrets = {name: key_file.add(keys, name) for name in ("alice", "bob", "carol", "dave", "erin")}
    port = free_port()
    options = ServeOptions(
        model=(f"tiny={model}",),
        port=port,
        max_replicas=1,
        key_file=keys,
        audio_s_per_minute=200,
        concurrent_requests=50,
        results_dir=str(folder / "results"),
        results_gb=0.02,
        allow_origin=(ORIGIN,),
    )
    with served(options):
        yield Server(f"http://127.0.0.1:{port}", keys, folder / "results", secrets)


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition of the server holds."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def expected(model: Path, **fields: Any) -> bytes:
    profile = ExecutionProfile.here()
    profile.prepare_process()
    (loop,) = LoopPipeline.of(load_model(model), profile).generate([REQUEST.validate_python(fields)])
    return loop.file(22_050, "wav")


def test_no_route_answers_without_a_known_key(server: Server) -> None:
    with server.http("dave") as http:
        paths = http.get("/openapi.json").json()["paths"]
        routes = [(method, path) for path, methods in paths.items() for method in methods]
        guarded = [(method, path) for method, path in routes if path not in ("/", "/healthz", "/readyz")]
        assert {("post", "/v1/jobs"), ("get", "/v1/models"), ("post", "/v1/generate")} <= set(guarded)
        key_file.revoke(server.keys, "dave")
        wait_for(lambda: http.get("/v1/models").status_code == 401)
        for authorization in ("", "Bearer wrong", f"Bearer {server.secrets['dave']}"):
            for method, path in [*guarded, ("get", "/v1/nothing"), ("get", "/docs"), ("get", "/openapi.json")]:
                answer = http.request(method, path, headers={"Authorization": authorization})
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
    with server.client("dave") as client, pytest.raises(AuthenticationError):
        client.models()


def test_the_client_and_the_server_agree(server: Server, model: Path, loops: Path) -> None:
    with server.client("alice") as client:
        (described,) = client.models()
        assert (described.name, described.digest) == ("tiny", load_model(model).digest)
        loop = client.generate(seed=3, steps=2)
        assert (loop.content, loop.seed, loop.model) == (expected(model, seed=3, steps=2), 3, "tiny")
        varied = client.variations(loops / "loop_mika.flac", seed=3, steps=2)
        assert varied.content != loop.content
        events = list(client.events("generate", seed=3, steps=2, preview_every=1))
        assert [event.data["step"] for event in events if event.type == "progress"] == [1, 2]
        assert [event.audio.content for event in events if event.type == "audio"] == [loop.content]
        first, wrong = client.generate_all([{"seed": 3, "steps": 2}, {"seed": 3, "steps": 0}])
        assert not isinstance(first, Exception)
        assert first.content == loop.content
        assert isinstance(wrong, InvalidRequestError)
        with pytest.raises(InvalidRequestError) as refused:
            client.generate(steps=0)
        assert (refused.value.status, refused.value.param) == (422, "steps")
        with pytest.raises(NotFoundError, match="model other is not served"):
            client.generate(model="other")


def test_a_job_of_one_request_has_the_bytes_of_its_loop(server: Server, model: Path) -> None:
    with server.client("alice") as client, server.client("bob") as stranger:
        job = client.jobs.create({"seed": 5, "steps": 3}, idempotency_key="job-of-one")
        assert client.jobs.create({"seed": 5, "steps": 3}, idempotency_key="job-of-one").id == job.id
        done = client.jobs.wait(job.id, poll_s=0.05, timeout_s=120)
        assert (done.status, done.progress) == ("completed", 100)
        assert done.expires_at is not None
        assert client.jobs.content(job.id) == client.jobs.content(job.id, 0) == expected(model, seed=5, steps=3)
        for call in (stranger.jobs.get, stranger.jobs.content, stranger.jobs.delete):
            with pytest.raises(NotFoundError):
                call(job.id)
        assert job.id not in {other.id for other in stranger.jobs.list().data}
        assert job.id in {own.id for own in client.jobs.list().data}
        client.jobs.delete(job.id)
        with pytest.raises(NotFoundError):
            client.jobs.get(job.id)


def test_the_content_of_a_list_is_a_zip(server: Server, model: Path, loops: Path) -> None:
    with server.client("alice") as client:
        requests: list[dict[str, Any]] = [
            {"seed": 6, "steps": 2},
            {"kind": "vary", "audio": b"not audio", "steps": 2},
            {"kind": "vary", "audio": loops / "loop_mika.flac", "steps": 2, "seed": 7},
        ]
        job = client.jobs.wait(client.jobs.create(requests).id, poll_s=0.05, timeout_s=120)
        with zipfile.ZipFile(io.BytesIO(client.jobs.content(job.id))) as file:
            assert file.namelist() == ["0000.wav", "0002.wav", "items.json"]
            assert file.read("0000.wav") == client.jobs.content(job.id, 0) == expected(model, seed=6, steps=2)
            items = json.loads(file.read("items.json"))
        assert [(item["error"] or {}).get("code") for item in items] == [None, "undecodable_audio", None]
        with pytest.raises(NotFoundError):
            client.jobs.content(job.id, 1)
        refused: list[Any] = [[{"steps": 1}, {"steps": 0}], [], 3, [3]]
        with server.http("alice") as http:
            for body in refused:
                assert http.post("/v1/jobs", json=body).status_code == 422
            assert http.post("/v1/jobs", json={"model": "other"}).status_code == 404
            assert http.get("/v1/jobs", params={"limit": 0}).json()["error"]["param"] == "limit"


def test_a_cancelled_job_stops_sampling(server: Server) -> None:
    with server.client("alice") as client, server.http("alice") as http:
        job = client.jobs.create(ENDLESS)
        wait_for(lambda: client.jobs.get(job.id).progress > 0)
        seen = client.jobs.get(job.id)
        assert (seen.status, seen.steps) == ("in_progress", 1_000)
        assert seen.estimate_s is not None
        client.jobs.delete(job.id)
        with pytest.raises(JobFailedError, match="cancelled"):
            client.jobs.wait(job.id, poll_s=0.05)
        wait_for(lambda: sampled(http, "audiodiff_running_requests") == 0)
        client.jobs.delete(job.id)


def test_a_damaged_result_is_reported(server: Server) -> None:
    with server.client("alice") as client, server.http("alice") as http:
        job = client.jobs.wait(client.jobs.create({"seed": 8, "steps": 1}).id, poll_s=0.05, timeout_s=120)
        (file,) = (server.results / "jobs/alice" / job.id).glob("content-*")
        file.unlink()
        answer = http.get(f"/v1/jobs/{job.id}/content")
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "result_damaged")
        assert client.jobs.get(job.id).status == "completed"


def test_an_idempotent_request_has_one_response(server: Server) -> None:
    with server.http("alice") as http, server.http("bob") as stranger:
        named = {"Idempotency-Key": "one"}
        first = http.post("/v1/generate", json={"steps": 1}, headers=named)
        again = http.post("/v1/generate", json={"steps": 1}, headers=named)
        assert first.status_code == again.status_code == 200
        assert (again.content, again.headers["x-audiodiff-seed"]) == (first.content, first.headers["x-audiodiff-seed"])
        assert again.headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in first.headers
        other = http.post("/v1/generate", json={"steps": 2}, headers=named)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
        theirs = stranger.post("/v1/generate", json={"steps": 1}, headers=named)
        assert theirs.headers["x-audiodiff-seed"] != first.headers["x-audiodiff-seed"]
        stream = named | {"Idempotency-Key": "two", "Accept": "text/event-stream"}
        with http.stream("POST", "/v1/generate", json=ENDLESS, headers=stream) as running:
            lines = running.iter_lines()  # httpx closes a stream whose iterator is gone
            assert next(lines) == "event: accepted"
            busy = http.post("/v1/generate", json=ENDLESS, headers=stream)
            assert (busy.status_code, busy.json()["error"]["code"]) == (409, "still_running")
            assert int(busy.headers["retry-after"]) >= 1
        wrong = [http.post("/v1/generate", json={"steps": 0}, headers={"Idempotency-Key": "x"}) for _ in range(2)]
        assert [answer.json()["error"]["param"] for answer in wrong] == ["steps", "steps"]


def test_the_audio_of_a_key_is_limited(server: Server) -> None:
    with server.client("carol") as client, server.http("carol") as http:
        answer = http.post("/v1/generate", json={"steps": 1})
        assert answer.headers["x-ratelimit-limit-audio-seconds-minute"] == "200"
        assert answer.headers["x-ratelimit-limit-concurrent-requests"] == "50"
        job = client.jobs.create({"kind": "extend", "duration_s": 150, "steps": 1_000})
        client.jobs.delete(job.id)
        with pytest.raises(RateLimitError) as refused:
            client.extend(duration_s=150, steps=1)
        assert refused.value.status == 429
        assert refused.value.retry_after_s is not None
        refusal = http.post("/v1/extend", json={"duration_s": 150})
        assert refusal.headers["x-ratelimit-remaining-audio-seconds-minute"].isdigit()
        never = http.post("/v1/extend", json={"duration_s": 300})
        assert (never.status_code, never.json()["error"]["code"]) == (422, "audio_limit")
        assert client.generate(steps=1).content, "what a request did not use is free again"


def test_pages_of_named_origins_may_call(server: Server) -> None:
    with httpx.Client(base_url=server.url) as http:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        allowed = http.options("/v1/generate", headers={"Origin": ORIGIN, **asked})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
        refused = http.options("/v1/generate", headers={"Origin": "https://other.example.com", **asked})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "origin_not_allowed")
        assert "access-control-allow-origin" not in refused.headers
        unauthorized = http.get("/v1/models", headers={"Origin": ORIGIN})
        assert (unauthorized.status_code, unauthorized.headers["access-control-allow-origin"]) == (401, ORIGIN)
        assert "Retry-After" in unauthorized.headers["access-control-expose-headers"]
        stranger = http.get("/v1/models", headers={"Origin": "https://other.example.com"})
        assert "access-control-allow-origin" not in stranger.headers


def test_a_full_result_folder_is_reported(server: Server) -> None:
    with server.client("alice") as client, server.http("alice") as http:
        kept = client.jobs.wait(client.jobs.create({"seed": 9, "steps": 1}).id, poll_s=0.05, timeout_s=120)
        body = {"kind": "vary", "audio": base64.b64encode(bytes(6_000_000)).decode(), "steps": 1}
        answers = [http.post("/v1/jobs", json=body) for _ in range(4)]
        assert [answer.status_code for answer in answers][::3] == [200, 507]
        assert answers[-1].json()["error"]["code"] == "results_full"
        assert client.jobs.content(kept.id)


@pytest.fixture
def small_disk(server: Server) -> Iterator[Path]:
    """Mount a file system of 256 kB for the jobs of one key."""
    folder = server.results / "jobs" / "erin"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_fails_a_job_and_damages_no_other(server: Server, model: Path, small_disk: Path) -> None:
    with server.client("erin") as client, server.http("erin") as http:
        kept = client.jobs.wait(client.jobs.create({"seed": 1, "steps": 1}).id, poll_s=0.05, timeout_s=120)
        large = client.jobs.create({"kind": "extend", "duration_s": 8, "steps": 1})
        with pytest.raises(JobFailedError, match="no space for the results"):
            client.jobs.wait(large.id, poll_s=0.05, timeout_s=120)
        status = os.statvfs(small_disk)
        (small_disk / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize))
        answer = http.post("/v1/jobs", json={"steps": 1})
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "results_full")
        assert {job.status for job in client.jobs.list().data} == {"completed", "failed"}
        assert client.jobs.content(kept.id) == expected(model, seed=1, steps=1)


@pytest.mark.soak
def test_a_job_outlives_the_replica_that_accepted_it(server: Server, model: Path) -> None:
    with server.client("bob", most=10) as client:
        requests = [{"seed": seed, "steps": 500} for seed in range(3)]
        job = client.jobs.create(requests)
        wait_for(lambda: client.jobs.get(job.id).progress > 0)
        title = "ServeReplica:audiodiff:ingress"
        for process in psutil.Process().children(recursive=True):
            if title in " ".join(process.as_dict(["cmdline"])["cmdline"] or ()):
                process.kill()
        client.jobs.wait(job.id, poll_s=0.2, timeout_s=300)
        for index, request in enumerate(requests):
            assert client.jobs.content(job.id, index) == expected(model, **request)
