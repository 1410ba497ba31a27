"""serve over real HTTP: the same bytes as generate, clear refusals, nothing open without a key."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from ray import serve as ray_serve

from audiodiff_core.checkpoint import ModelRecord, load_model, save_model
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, build_network
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_platform.serve.job import MAX_BODY_BYTES, ServeOptions, serve, start

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
def client(local_ray: None, model: Path, conditional: Path) -> Iterator[httpx.Client]:
    """A client that sends the key to a server that requires it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    models = (f"tiny={model}", f"conditional={conditional}")
    start(ServeOptions(model=models, port=port), replicas=1, api_key=KEY)
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=60
    ) as session:
        yield session
    ray_serve.shutdown()


def _expected(model: Path, request: GenerateRequest) -> bytes:
    profile = ExecutionProfile.here()
    profile.prepare_process()
    (loop,) = LoopPipeline.of(load_model(model), profile).generate([request])
    return loop.file(22_050, "wav")


def test_it_answers_with_the_bytes_that_generate_writes(client: httpx.Client, model: Path) -> None:
    assert client.get("/healthz").status_code == 200
    described, other = client.get("/v1/models").json()["models"]
    assert (described["name"], other["name"]) == ("tiny", "conditional")
    assert described["digest"] == load_model(model).digest
    answer = client.post(
        "/v1/generate", json={"model": "tiny", "seed": 3, "steps": 4, "scheduler": "ddpm", "format": "wav"}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/wav"
    assert (answer.headers["x-audiodiff-seed"], answer.headers["x-audiodiff-model"]) == ("3", "tiny")
    assert answer.content == _expected(model, GenerateRequest(seed=3, steps=4, scheduler="ddpm"))


def test_a_body_is_a_request_of_any_model(client: httpx.Client, conditional: Path) -> None:
    values = [0.5, -1.0, 0.0, 2.0]
    fields = {"seed": 3, "steps": 3, "guidance_scale": 2.0, "seamless": True, "duration_s": 0.5}
    for encoding in (None, values):
        body = {"model": "conditional", **fields, "encoding": encoding}
        answer = client.post("/v1/generate", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.content == _expected(conditional, GenerateRequest(**fields, encoding=encoding))
    for wrong, named in (("drums", "reference"), ([1.0], "takes 4 finite numbers")):
        refused = client.post("/v1/generate", json={"model": "conditional", "encoding": wrong})
        assert refused.status_code == 422
        assert named in refused.text
    for condition in ({"like": "/etc/passwd"}, {"prompt": "choir"}):
        refused = client.post("/v1/generate", json={"model": "conditional", **condition})
        assert refused.status_code == 422
        assert "servers embed neither audio nor text" in refused.text


def test_requests_in_company_get_the_same_bytes_as_alone(client: httpx.Client) -> None:
    bodies = [{"seed": seed, "steps": 2 + seed % 3} for seed in range(8)] + [{"seed": 0, "steps": 2}]
    alone = [client.post("/v1/generate", json=body).content for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: client.post("/v1/generate", json=body).content, bodies))
    assert together == alone
    assert len(set(alone)) == 8


def test_without_a_seed_a_new_loop_is_drawn_and_told(client: httpx.Client) -> None:
    first, second = (client.post("/v1/generate", json={"steps": 1}) for _ in range(2))
    assert first.headers["x-audiodiff-seed"] != second.headers["x-audiodiff-seed"]
    again = client.post("/v1/generate", json={"steps": 1, "seed": int(first.headers["x-audiodiff-seed"])})
    assert again.content == first.content


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"steps": 0}, 422, "steps"),
        ({"steps": 1001}, 422, "steps"),
        ({"seed": -1}, 422, "seed"),
        ({"seed": 2**32}, 422, "seed"),
        ({"scheduler": "fast"}, 422, "scheduler"),
        ({"scheduler": "heun"}, 422, "heun does not support the model's zero terminal SNR"),
        ({"width": 33}, 422, "width 33"),
        ({"eta": 0.5, "scheduler": "euler"}, 422, "eta 0.5"),
        ({"format": "exe"}, 422, "format"),
        ({"step": 3}, 422, "step"),
        ({"model": "other"}, 404, "other"),
    ],
)
def test_a_wrong_body_is_refused_by_name(
    client: httpx.Client, body: dict[str, object], status: int, named: str
) -> None:
    answer = client.post("/v1/generate", json=body)
    assert answer.status_code == status
    assert named in answer.text
    assert "Traceback" not in answer.text


def test_a_body_that_is_too_large_or_not_json_is_refused(client: httpx.Client) -> None:
    assert client.post("/v1/generate", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert client.post("/v1/generate", content=iter([b"x" * 100])).status_code == 413
    assert client.post("/v1/generate", content=b"{").status_code == 422


def test_the_key_is_asked_for(client: httpx.Client) -> None:
    for wrong in ("", "Bearer other", KEY):
        answer = client.post("/v1/generate", json={"steps": 1}, headers={"Authorization": wrong})
        assert answer.status_code == 401
        assert client.get("/v1/models", headers={"Authorization": wrong}).status_code == 401
    assert client.get("/healthz", headers={"Authorization": ""}).status_code == 200


def test_beyond_loopback_it_does_not_start_without_a_key(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUDIODIFF_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "example.com"):
        with pytest.raises(ValueError, match=r"set AUDIODIFF_API_KEY"):
            serve(ServeOptions(model=(f"tiny={model}",), host=host))


def test_models_need_names() -> None:
    for entry in ("path/only", "=path", "bad/name=path", "name="):
        with pytest.raises(ValueError, match="NAME=PATH"):
            ServeOptions(model=(entry,))
