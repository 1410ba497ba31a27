"""serve over real HTTP: the same bytes as generate, clear refusals, nothing open without a key."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from audiodiff_core.checkpoint import ModelRecord, load_model, save_model
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, build_network
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from audiodiff_platform.serve.job import served
from audiodiff_platform.serve.options import ServeOptions

pytestmark = pytest.mark.workers

KEY = "a key for this test"


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional model with encodings of 4 values."""
    mel = MelConfig(x_res=32, y_res=32)
    network = build_network("tiny-conditional", mel, encoding_dim=4)
    record = ModelRecord(recipe={}, data_digest="none", metrics={})
    folder = tmp_path_factory.mktemp("conditional") / "model"
    save_model(folder, network, PRESETS["tiny-conditional"].objective.scheduler("ddim"), mel, record)
    return folder


@pytest.fixture(scope="module")
def options(model: Path, conditional: Path) -> ServeOptions:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    models = (f"tiny={model}", f"conditional={conditional}")
    return ServeOptions(model=models, port=port, max_replicas=1, max_upload_mb=1, queue_batches=8)


@pytest.fixture(scope="module")
def client(local_ray: None, options: ServeOptions) -> Iterator[httpx.Client]:
    """A client that sends the key to a server that requires it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIODIFF_API_KEY", KEY)
        with (
            served(options),
            httpx.Client(
                base_url=f"http://127.0.0.1:{options.port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=60
            ) as session,
        ):
            yield session


def expected(model: Path, fields: dict[str, Any]) -> bytes:
    """Return the WAV file that the pipeline makes of a request."""
    profile = ExecutionProfile.here()
    profile.prepare_process()
    (loop,) = LoopPipeline.of(load_model(model), profile).generate([REQUEST.validate_python(fields)])
    return loop.file(22_050, "wav")


def events_of(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    pieces = [piece.split("\n") for piece in answer.text.split("\n\n") if piece.startswith("event: ")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pieces]


def test_it_answers_with_the_bytes_that_generate_writes(client: httpx.Client, model: Path) -> None:
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    described, other = client.get("/v1/models").json()["models"]
    assert (described["name"], other["name"], other["encoding_dim"]) == ("tiny", "conditional", 4)
    digest = load_model(model).digest
    assert described["digest"] == digest
    fields = {"seed": 3, "steps": 4, "scheduler": "ddpm"}
    answer = client.post("/v1/generate", json={"model": "tiny", **fields, "format": "wav"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/wav"
    named = [answer.headers[f"x-audiodiff-{name}"] for name in ("seed", "model", "digest")]
    assert named == ["3", "tiny", digest]
    assert {part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")} >= {"queue", "sample"}
    assert answer.headers["x-request-id"]
    assert answer.content == expected(model, fields)
