"""Jobs submitted to a cluster with token authentication, and an application that `serve deploy` starts there.

The nodes of the cluster have Ray but not this project.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from audiodiff_core.checkpoint import load_model
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from audiodiff_platform.serve.application import serve_yaml
from audiodiff_platform.serve.options import ServeOptions
from tests.serving import wait_for

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
READY_S = 120
STOP_S = 60
PORTS = range(20_000, 32_000)  # below the ephemeral ports of Linux
JOB_S = 300


@dataclass(frozen=True)
class Head:
    """Running head node: its dashboard address, its token and an environment with this token."""

    url: str
    token: str
    environment: dict[str, str]
    folder: Path

    def get(self, path: str, token: str | None = None, method: str = "GET") -> int:
        """Return the status of an HTTP request to the dashboard."""
        request = urllib.request.Request(
            f"{self.url}{path}", headers={"Authorization": f"Bearer {token}"} if token else {}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refusal:
            return refusal.code

    def submit(self, *command: object) -> tuple[int, str]:
        """Submit a command as a job, as in the README; return the exit status and the output."""
        options = ["--address", self.url, "--runtime-env", "cluster/runtime-env.yaml", "--working-dir", "."]
        done = subprocess.run(
            [RAY, "job", "submit", *options, "--", *map(str, command)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=JOB_S,
            check=False,
        )
        return done.returncode, done.stdout

    def run(self, verb: str, **options: object) -> dict[str, Any]:
        """Run a verb that must succeed and return its summary."""
        status, printed = self.submit(
            "python", f"jobs/{verb}.py", *(part for name, value in options.items() for part in (f"--{name}", value))
        )
        assert status == 0, printed
        (summary,) = (json.loads(line) for line in printed.splitlines() if line.startswith("{"))
        assert isinstance(summary, dict)
        assert summary["verb"] == verb
        return summary


def free_ports(count: int) -> list[int]:
    """Return different ports on which nothing listens.

    The ports lie below the ephemeral range, so no outgoing connection takes them before Ray listens there.
    """
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            return ports
    pytest.fail(f"no {count} free ports in {PORTS}")


def node_environment(folder: Path) -> tuple[Path, dict[str, str]]:
    """Create a Python without this project, and an environment that finds this Python first.

    The Python shares all packages of the running Python except editable installs.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text("".join(f"{sysconfig.get_path(kind)}\n" for kind in ("purelib", "platlib")))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "PYTHONPATH"
    }
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    probe = subprocess.run(
        [python, "-c", "import audiodiff_platform"], env=environment, cwd=folder, capture_output=True, check=False
    )
    assert b"ModuleNotFoundError" in probe.stderr, (
        "install the project as make install does: the nodes of this test must not have it"
    )
    return python, environment


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the head and all of its processes, and wait for their end."""
    process.terminate()
    try:
        process.wait(STOP_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Ray started by `ray start` on a head node, on free ports and in a separate folder."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "auth_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    python, environment = node_environment(folder / "python")
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    # Without this setting the head waits half a minute for work that does not exist.
    environment |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    gcs, dashboard, client, agent = free_ports(4)
    ports = {
        "port": gcs,
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
    }
    ports |= {"min-worker-port": 0, "max-worker-port": 0}
    # Unix sockets need a short path, so the folder is not below tmp_path.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as session, (folder / "head.log").open("wb") as log:
        command = [
            str(python),
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1",
        ]
        command += [
            "--num-cpus=2",
            "--object-store-memory=100000000",
            f"--temp-dir={session}",
            *(f"--{name}={port}" for name, port in ports.items()),
        ]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        started = Head(f"http://127.0.0.1:{dashboard}", token.read_text(), environment, Path(session))
        try:
            wait_until_ready(started, process, folder / "head.log")
            yield started
        finally:
            stop(process)


def wait_until_ready(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the job server answers."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            if head.get("/api/jobs/", head.token) == 200:
                return
        time.sleep(0.2)
    pytest.fail(f"no head within {READY_S} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def two_loops(loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for name in ("loop_tabla", "bass_hit_c"):
        shutil.copy(loops / f"{name}.flac", folder)
    return folder


@pytest.mark.soak_short
def test_strangers_are_refused(head: Head) -> None:
    for path, method in (("/api/version", "GET"), ("/api/jobs/", "GET"), ("/api/jobs/", "POST")):
        assert head.get(path, method=method) == 401
        assert head.get(path, "0" * 64, method) == 403
    assert head.get("/api/version", head.token) == 200


@pytest.mark.soak_short
def test_journey_from_audio_to_loops(head: Head, two_loops: Path, tmp_path: Path) -> None:
    dataset, run, out = tmp_path / "dataset", tmp_path / "train", tmp_path / "loops"
    prepared = head.run("prepare", input_dir=two_loops, output_dir=dataset, resolution=32, hop_length=1024)
    assert prepared["files"] == 2
    assert (dataset / "_SUCCESS").is_file()
    trained = head.run(
        "train",
        dataset_name=dataset,
        output_dir=run,
        preset="tiny",
        max_train_steps=2,
        num_workers=1,
        train_batch_size=4,
    )
    assert trained["steps"] == 2
    assert (run / "model" / "model_index.json").is_file()
    generated = head.run("generate", model=run / "model", output_dir=out, count=2, steps=2)
    assert generated["loops"] == 2
    assert sorted(file.name for file in (out / "audio").iterdir()) == ["0000000000.wav", "0000000001.wav"]
    assert (out / "_SUCCESS").is_file()


@pytest.mark.soak_short
def test_relative_output_is_refused_before_anything_is_made(head: Head, two_loops: Path) -> None:
    status, printed = head.submit(
        "python", "jobs/prepare.py", "--input_dir", two_loops, "--output_dir", "not/made", "--resolution", 32
    )
    assert status == 1, printed
    assert "exit code 2" in printed
    assert "Traceback" not in printed
    # The CLI shows the log of the job twice, hence the set.
    (error,) = {line for line in printed.splitlines() if line.startswith("error: ")}
    assert error.startswith("error: output_dir not/made is relative")
    assert not list(head.folder.rglob("not/made"))
    assert not (ROOT / "not").exists()


def serve_command(head: Head, *command: object, with_token: bool = True) -> subprocess.CompletedProcess[str]:
    environment = head.environment if with_token else {**head.environment, "RAY_AUTH_MODE": "disabled"}
    return subprocess.run(
        [RAY.with_name("serve"), str(command[0]), "--address", head.url, *map(str, command[1:])],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=JOB_S,
        check=False,
    )


@pytest.fixture
def deployed(head: Head, model: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the application that `serve deploy` started, on nodes that can import the project."""
    (port,) = free_ports(1)
    file = tmp_path / "serve.yaml"
    config = yaml.safe_load(serve_yaml(ServeOptions(model=(f"tiny={model}",), port=port, max_replicas=1)))
    config["applications"][0]["runtime_env"]["env_vars"]["PYTHONPATH"] = f"{ROOT}:{ROOT / 'platform'}"
    file.write_text(yaml.safe_dump(config))
    stranger = serve_command(head, "deploy", file, with_token=False)
    assert stranger.returncode != 0
    assert "Authentication required" in stranger.stdout, stranger.stdout
    done = serve_command(head, "deploy", file)
    assert done.returncode == 0, done.stdout
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        stopped = serve_command(head, "shutdown", "--yes")
        assert stopped.returncode == 0, stopped.stdout


@pytest.mark.soak_short
def test_serve_deploy_serves_the_bytes_of_the_core(head: Head, deployed: httpx.Client, model: Path) -> None:
    deadline, status = time.monotonic() + READY_S, ""
    while status != "RUNNING":
        assert time.monotonic() < deadline, status
        assert status != "DEPLOY_FAILED"
        status = yaml.safe_load(serve_command(head, "status", "--name", "audiodiff").stdout)["status"]
    wait_for(lambda: deployed.get("/readyz").status_code == 200, "a replica is ready")
    answer = deployed.post("/v1/generate", json={"seed": 7, "steps": 4})
    assert answer.status_code == 200, answer.text
    profile = ExecutionProfile.here()
    profile.prepare_process()
    (loop,) = LoopPipeline.of(load_model(model), profile).generate([REQUEST.validate_python({"seed": 7, "steps": 4})])
    assert answer.content == loop.file(22_050, "wav")
    assert 'audiodiff_replicas{deployment="generation"} 1.0' in deployed.get("/metrics").text
