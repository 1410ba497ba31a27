"""Jobs and their results outlive the server that accepted them."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from audiodiff_platform.client import Client
from audiodiff_platform.serve.job import served
from audiodiff_platform.serve.options import ServeOptions
from tests.serving import free_port

pytestmark = [pytest.mark.workers, pytest.mark.soak]


def test_a_server_goes_on_with_the_jobs_of_the_one_before(local_ray: None, model: Path, tmp_path: Path) -> None:
    port = free_port()
    options = ServeOptions(model=(f"tiny={model}",), port=port, max_replicas=1, results_dir=str(tmp_path / "results"))
    with Client(f"http://127.0.0.1:{port}", timeout_s=120) as client:
        with served(options):
            done = client.jobs.wait(client.jobs.create({"seed": 1, "steps": 1}).id, poll_s=0.05)
            content = client.jobs.content(done.id)
            open_job = client.jobs.create({"kind": "extend", "duration_s": 50, "steps": 1_000})
            wait_for(lambda: client.jobs.get(open_job.id).progress > 0)
        attempt = tmp_path / "results/jobs/anonymous" / open_job.id / "attempt-1.json"
        assert json.loads(attempt.read_text())["held_until"] == 0, "a server that ends releases its jobs"
        with served(options):
            assert client.jobs.content(done.id) == content
            wait_for(attempt.with_name("attempt-2.json").exists)
            client.jobs.delete(open_job.id)
            assert client.jobs.get(open_job.id).status == "cancelled"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "the job was not run"
        time.sleep(0.05)
