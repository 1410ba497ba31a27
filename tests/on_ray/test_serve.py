"""serve over real HTTP: the same bytes as generate, clear refusals, nothing open without a key."""

import base64
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from audiodiff_core.checkpoint import load_model
from audiodiff_core.embeddings.measured import MeasuredConditions
from audiodiff_core.mel.png import decode_png
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from audiodiff_platform.serve.job import served
from audiodiff_platform.serve.options import ServeOptions
from tests.random_models import save_conditional
from tests.serving import free_port, sampled, wait_for

pytestmark = pytest.mark.workers

KEY = "a key for this test"


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional model with encodings of 4 values."""
    return save_conditional(tmp_path_factory.mktemp("conditional") / "model", 4, hop_length=512)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is conditioned on tempo and key."""
    conditions = MeasuredConditions.of(["tempo", "key"])
    folder = tmp_path_factory.mktemp("keyed") / "model"
    return save_conditional(folder, conditions.dim, hop_length=512, conditions=conditions)


@pytest.fixture(scope="module")
def options(model: Path, conditional: Path, keyed: Path, tmp_path_factory: pytest.TempPathFactory) -> ServeOptions:
    models = (f"tiny={model}", f"conditional={conditional}", f"keyed={keyed}")
    results = str(tmp_path_factory.mktemp("results"))
    return ServeOptions(
        model=models, port=free_port(), max_replicas=1, max_upload_mb=1, queue_batches=2, results_dir=results
    )


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
    described, other, keyed = client.get("/v1/models").json()["models"]
    assert (described["name"], other["name"], other["encoding_dim"]) == ("tiny", "conditional", 4)
    assert (other["conditions"], keyed["conditions"]) == ([], ["tempo", "key"])
    assert (other["ranges"], keyed["ranges"]) == ({}, {"tempo": [40, 240]})
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


def test_a_body_is_a_request_of_any_model(client: httpx.Client, conditional: Path) -> None:
    fields = {"seed": 3, "steps": 3, "guidance_scale": 2.0, "seamless": True, "duration_s": 0.5}
    body = {"model": "conditional", **fields, "encoding": [0.5, -1.0, 0.0, 2.0]}
    answer = client.post("/v1/generate", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.content == expected(conditional, {**fields, "encoding": body["encoding"]})
    for wrong, named in (("drums", "reference"), ([1.0], "takes 4 finite numbers")):
        refused = client.post("/v1/generate", json={"model": "conditional", "encoding": wrong})
        assert refused.status_code == 422
        assert named in refused.json()["error"]["message"]
    for condition, named in (("/etc/passwd", "must be base64"), ("AAAA", "the encoder of the model is not served")):
        refused = client.post("/v1/generate", json={"model": "conditional", "like": condition})
        assert refused.status_code == 422
        assert named in refused.json()["error"]["message"]
    for route in ("/v1/generate", "/v1/jobs"):
        for stated in ({"prompt": "choir"}, {"like": "AAAA"}):
            refused = client.post(route, json={"model": "conditional", **stated})
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_encoder")
        for field, value in (("guidance_scale", 2), ("loudness", 0), ("key", "C"), ("bpm", 120)):
            refused = client.post(route, json={"kind": "interpolate", "audio": ["AAAA", "AAAA"], field: value})
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, field)
    assert client.get("/v1/jobs").json()["data"] == []
    assert client.post("/v1/encode", json={"audio": "AAAA"}).status_code == 404


def test_tempo_and_key_are_fields_of_a_request(client: httpx.Client, keyed: Path, loops: Path) -> None:
    fields = {"seed": 3, "steps": 2, "bpm": 90, "key": "f#m"}
    answer = client.post("/v1/generate", json={"model": "keyed", **fields}, headers={"Accept": "application/json"})
    assert answer.status_code == 200, answer.text
    assert base64.b64decode(answer.json()["audio"]) == expected(keyed, fields)
    request = answer.json()["request"]
    assert (request["bpm"], request["key"]) == (90.0, "F# minor")
    form = {"model": "keyed", "steps": "2", "seed": "3", "strength": "0.5", "key": "Am"}
    source = loops / "loop_mika.flac"
    varied = client.post("/v1/variations", data=form, files={"audio": source.read_bytes()})
    own = {"kind": "vary", "source": str(source), "steps": 2, "seed": 3, "strength": 0.5, "key": "Am"}
    assert varied.content == expected(keyed, own)
    for body, words in (
        ({"model": "tiny", "bpm": 90}, "bpm 90 without bars: the model is not conditioned on tempo, and has no"),
        ({"model": "keyed", "brightness": 900}, "brightness 900: the model is not conditioned on brightness, only on"),
        ({"model": "keyed", "key": "H"}, "key: key H: use a tonic and a mode, such as C, Am, F# minor or Bb major"),
        ({"model": "keyed", "key": "C", "prompt": "choir"}, "key with prompt: both state the encoding"),
        (
            {"model": "keyed", "prompt": "choir"},
            "prompt: the model has no encoder, it is conditioned on tempo, key",
        ),
        (
            {"model": "keyed", "like": "AAAA"},
            "like: the model has no encoder, it is conditioned on tempo, key: omit",
        ),
        ({"model": "tiny", "prompt": "choir"}, "prompt: the model is not conditional, omit it"),
    ):
        refused = client.post("/v1/generate", json=body)
        assert refused.status_code == 422
        assert words in refused.json()["error"]["message"]


def test_names_of_vllm_omni_are_understood(client: httpx.Client) -> None:
    wanted = client.post("/v1/generate", json={"seed": 3, "steps": 2, "duration_s": 1.0, "format": "flac"})
    body = {"model": "tiny", "seed": 3, "num_inference_steps": 2, "audio_length": 1.0, "response_format": "flac"}
    answer = client.post("/v1/audio/generate", json=body)
    assert (answer.content, answer.headers["content-type"]) == (wanted.content, "audio/flac")
    for wrong, param in (
        ({"audio_length": -1}, "audio_length"),
        ({"input": "choir"}, "input"),
        ({"steps": 2}, "steps"),
    ):
        refused = client.post("/v1/audio/generate", json={**body, **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, param), refused.text


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


def test_a_result_that_the_client_holds_is_not_made_again(client: httpx.Client) -> None:
    body = {"seed": 4, "steps": 1}
    tag = client.post("/v1/generate", json=body).headers["etag"]
    again = client.post("/v1/generate", json={**body, "width": 32}, headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.headers["etag"], again.content) == (304, tag, b"")
    changed = client.post("/v1/generate", json={**body, "format": "flac"}, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


def test_json_holds_the_audio_and_where_it_comes_from(client: httpx.Client, model: Path) -> None:
    answer = client.post("/v1/generate", json={"seed": 3, "steps": 2}, headers={"Accept": "application/json"}).json()
    content = base64.b64decode(answer["audio"])
    assert content == expected(model, {"seed": 3, "steps": 2})
    assert answer["sha256"] == hashlib.sha256(content).hexdigest()
    assert answer["request"]["scheduler"] == "ddim"
    assert {"tempo_bpm", "profile", "model_digest", "duration_s", "seconds"} <= answer.keys()


def test_events_tell_progress_previews_and_the_audio(client: httpx.Client, model: Path) -> None:
    body = {"seed": 3, "steps": 4, "preview_every": 2}
    answer = client.post("/v1/generate", json=body, headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer)
    assert [name for name, _ in events][:2] == ["accepted", "started"]
    assert [data for name, data in events if name == "progress"] == [{"step": n, "steps": 4} for n in range(1, 5)]
    (preview,) = (data for name, data in events if name == "preview")
    assert decode_png(base64.b64decode(preview["png"])).shape == (32, 32)
    (audio,) = (data for name, data in events if name == "audio")
    assert base64.b64decode(audio["audio"]) == expected(model, {"seed": 3, "steps": 4})
    assert events[-1] == ("done", {})
    refused = client.post("/v1/generate", json={"width": 33}, headers={"Accept": "text/event-stream"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_value")


def test_a_bad_request_of_a_list_fails_alone(client: httpx.Client, model: Path) -> None:
    bodies: list[Any] = [{"seed": seed, "steps": 2} for seed in range(7)] + [{"steps": 2, "width": 33}, {"model": "x"}]
    answer = client.post("/v1/generate", json=bodies)
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert [entry["index"] for entry in data] == list(range(9))
    assert base64.b64decode(data[3]["audio"]) == expected(model, {"seed": 3, "steps": 2})
    assert ["error" in entry for entry in data] == [False] * 7 + [True] * 2
    streamed = events_of(client.post("/v1/generate", json=bodies, headers={"Accept": "text/event-stream"}))
    ends = {data["index"]: name for name, data in streamed if name in ("audio", "error")}
    assert ends == {**dict.fromkeys(range(7), "audio"), 7: "error", 8: "error"}
    assert streamed[-1] == ("done", {"count": 9})
    assert client.post("/v1/generate", json=bodies[-2:]).status_code == 422


@pytest.mark.parametrize(
    ("route", "kind", "fields", "count"),
    [
        ("variations", "vary", {"strength": 0.6, "slice": 1}, 1),
        ("inpaint", "inpaint", {"regenerate": [[0.0, 0.5]]}, 1),
        ("extend", "extend", {"duration_s": 2.0}, 1),
        ("remix", "remix", {"start_step": 1}, 1),
        ("interpolate", "interpolate", {"position": 0.25, "refinements": 1}, 2),
        ("interpolate", "interpolate", {"seeds": [1, 2]}, 0),
    ],
)
def test_uploads_give_the_bytes_that_files_give(
    client: httpx.Client, model: Path, loops: Path, route: str, kind: str, fields: dict[str, Any], count: int
) -> None:
    files = [loops / "ambi_haunted_hum.flac", loops / "loop_mika.flac"][:count]
    contents = [file.read_bytes() for file in files]
    common = {"seed": 5, "steps": 3, **fields}
    named = {"sources": files} if kind == "interpolate" else {"source": files[0] if files else None}
    paths = {
        name: str(value) if isinstance(value, Path) else [str(path) for path in value]
        for name, value in named.items()
        if value
    }
    wav = expected(model, {"kind": kind, **common, **paths})
    form = {name: json.dumps(value) if isinstance(value, list) else str(value) for name, value in common.items()}
    parts = [("audio", (file.name, content)) for file, content in zip(files, contents, strict=True)]
    answer = client.post(f"/v1/{route}", data=form, files=parts or None)
    assert answer.status_code == 200, answer.text
    assert answer.content == wav
    texts = [base64.b64encode(content).decode() for content in contents]
    in_json = {**common, **({"audio": texts if count > 1 else texts[0]} if texts else {})}
    assert client.post(f"/v1/{route}", json=in_json).content == wav


def test_a_wrong_upload_is_refused(client: httpx.Client, loops: Path) -> None:
    good = (loops / "bass_hit_c.flac").read_bytes()
    cases: list[tuple[str, dict[str, Any], list[tuple[str, bytes]], int, str]] = [
        ("variations", {}, [("audio", b"not audio")], 422, "undecodable_audio"),
        ("variations", {"slice": "99"}, [("audio", good)], 422, "undecodable_audio"),
        ("variations", {}, [], 422, "invalid_value"),
        ("variations", {}, [("audio", good), ("audio", good)], 422, "invalid_value"),
        ("variations", {}, [("sound", good)], 422, "unknown_field"),
        ("variations", {"source": "/etc/passwd"}, [("audio", good)], 422, "invalid_value"),
        ("inpaint", {"regenerate": "[[0"}, [("audio", good)], 422, "invalid_value"),
        ("remix", {"steps": "two"}, [("audio", good)], 422, "invalid_value"),
        ("remix", {"model": "x"}, [("audio", good)], 404, "model_not_found"),
        ("remix", {}, [("audio", b"x" * 6_000_000)], 413, "body_too_large"),
    ]
    for route, form, files, status, code in cases:
        answer = client.post(f"/v1/{route}", data=form, files=[(name, ("a", content)) for name, content in files])
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    for text in ("%%%", 3, [1]):
        assert client.post("/v1/variations", json={"audio": text}).json()["error"]["param"] == "audio"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"steps": 0}, 422, "steps"),
        ({"steps": 1001}, 422, "steps"),
        ({"seed": 2**32}, 422, "seed"),
        ({"seed": True}, 422, "seed"),
        ({"scheduler": "fast"}, 422, "scheduler"),
        ({"scheduler": "heun"}, 422, None),
        ({"width": 33}, 422, None),
        ({"format": "exe"}, 422, "format"),
        ({"step": 3}, 422, "step"),
        ({"kind": "sing"}, 422, "kind"),
        ({"kind": [None]}, 422, "kind"),
        ({"kind": None}, 422, "kind"),
        ({"kind": "interpolate", "audio": [""]}, 422, "audio"),
        ({"duration_s": 601}, 422, "duration_s"),
        ({"preview_every": -1}, 422, "preview_every"),
        ({"model": "other"}, 404, "model"),
        ([], 422, None),
        (3, 422, None),
    ],
)
def test_a_wrong_body_is_refused_by_name(client: httpx.Client, body: Any, status: int, param: str | None) -> None:
    answer = client.post("/v1/generate", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert error.keys() == {"message", "type", "param", "code"}


def test_every_error_has_the_one_shape(client: httpx.Client) -> None:
    in_json = {"content-type": "application/json"}
    cases = [
        (client.get("/v1/nothing"), 404, "unknown_route"),
        (client.get("/v1/generate"), 405, "method_not_allowed"),
        (client.post("/v1/audio/generate", content=b"\xff", headers=in_json), 422, "invalid_json"),
        (client.post("/v1/generate", content=b"{"), 422, "invalid_json"),
        (client.post("/v1/generate", content=b"[" * 100_000), 422, "invalid_json"),
        (client.post("/v1/generate", content=b"x" * 6_000_000), 413, "body_too_large"),
        (client.post("/v1/generate", content=iter([b"x" * 1_000_000] * 6)), 413, "body_too_large"),
    ]
    for answer, status, code in cases:
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert client.put("/v1/jobs").headers["allow"] == "GET, POST"


def test_the_key_is_asked_for(client: httpx.Client) -> None:
    for wrong in ("", "Bearer other", KEY):
        for path in ("/v1/models", "/v1/nothing", "/docs", "/openapi.json"):
            answer = client.get(path, headers={"Authorization": wrong})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.post("/v1/generate", json={"steps": 1}, headers={"Authorization": wrong}).status_code == 401
    for path in ("/healthz", "/readyz"):
        assert client.get(path, headers={"Authorization": ""}).status_code == 200


def test_the_interface_is_described(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()["paths"]
    body = described["/v1/inpaint"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"audio", "regenerate", "steps", "format"} <= body["properties"].keys()
    assert "source" not in body["properties"]
    assert {"401", "422", "503"} <= described["/v1/generate"]["post"]["responses"].keys()


def test_the_process_of_the_interface_has_no_torch(client: httpx.Client) -> None:
    def replicas_with_torch(deployment: str) -> list[bool]:
        title = f"ServeReplica:audiodiff:{deployment}"
        replicas = [
            process for process in processes if title in " ".join(process.as_dict(["cmdline"])["cmdline"] or ())
        ]
        return [any("libtorch" in part.path for part in replica.memory_maps()) for replica in replicas]

    processes = psutil.Process().children(recursive=True)
    assert replicas_with_torch("ingress") == [False]
    assert replicas_with_torch("generation") == [True]


def test_clients_that_leave_free_the_batch(client: httpx.Client) -> None:
    endless = {"kind": "extend", "duration_s": 500, "steps": 1_000}
    stream = {"Accept": "text/event-stream", "x-request-disconnect-disabled": "?1"}
    streams = []  # httpx closes a stream whose iterator is gone
    with ExitStack() as clients:
        for _ in range(4):
            answer = clients.enter_context(client.stream("POST", "/v1/generate", json=endless, headers=stream))
            streams.append(answer.iter_lines())
            assert next(streams[-1]) == "event: accepted"
        refused = client.post("/v1/generate", json={"steps": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "wait_too_long")
        assert int(refused.headers["retry-after"]) >= 1
    waiting = ("audiodiff_queue_length", "audiodiff_running_requests")
    wait_for(lambda: not any(sampled(client, name) for name in waiting), "the requests of clients that left end")


def test_metrics_count_what_the_replicas_did(client: httpx.Client) -> None:
    def values() -> dict[str, float]:
        tiny = {"model": "tiny"}
        return {
            "results": sampled(client, "audiodiff_results_total", end="audio", **tiny),
            "steps": sampled(client, "audiodiff_steps_total", **tiny),
            "batch steps": sampled(client, "audiodiff_batch_step_seconds_count", **tiny),
            "rows": sampled(client, "audiodiff_batch_rows_total", **tiny),
            "audio": sampled(client, "audiodiff_audio_seconds_total", **tiny),
            "answers": sampled(client, "audiodiff_http_requests_total", route="/v1/generate", status="200"),
            "wrong keys": sampled(client, "audiodiff_rejected_requests_total", reason="invalid_api_key"),
            "wrong fields": sampled(client, "audiodiff_rejected_requests_total", reason="unknown_field"),
            "unknown": sampled(client, "audiodiff_http_requests_total", route="none", status="404"),
        } | {
            stage: sampled(client, "audiodiff_stage_seconds_count", stage=stage, **tiny)
            for stage in ("queue", "sample", "render", "encode")
        }

    before = values()
    answer = client.post("/v1/generate", json={"steps": 3, "guidance_scale": 1}, headers={"Accept": "application/json"})
    assert client.post("/v1/generate", json={"step": 3}).status_code == 422
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/metrics", headers={"Authorization": "Bearer other"}).status_code == 401
    changes = {name: value - before[name] for name, value in values().items()}
    assert changes.pop("audio") == pytest.approx(answer.json()["duration_s"])
    assert changes == dict.fromkeys(before.keys() - {"audio"}, 1.0) | dict.fromkeys(
        ("steps", "batch steps", "rows"), 3.0
    )
    for deployment in ("ingress", "generation"):
        assert sampled(client, "process_resident_memory_bytes", deployment=deployment) > 1e7
    assert sampled(client, "audiodiff_real_time_factor", model="tiny") > 0


def test_a_request_is_a_line_of_the_log_without_its_body_and_key(client: httpx.Client, ray_logs: Path) -> None:
    answer = client.post("/v1/generate", json={"steps": 1, "seed": 987_654_321})
    refused = client.post("/v1/generate", json={"a-field-of-the-body": "a-value-of-the-body"})

    def line_of(response: httpx.Response, deployment: str) -> dict[str, Any] | None:
        """Return the last line of a deployment about a request, or None."""
        texts = [file.read_text() for file in (ray_logs / "serve").glob(f"replica_audiodiff_{deployment}_*")]
        lines = [json.loads(line) for text in texts for line in text.splitlines()]
        request_id = response.headers["x-request-id"]
        return next((line for line in reversed(lines) if line.get("request_id") == request_id), None)

    for response, status, code in ((answer, 200, None), (refused, 422, "unknown_field")):
        wait_for(partial(line_of, response, "ingress"), "the line of the request")
        line = line_of(response, "ingress")
        assert line is not None
        facts = [line[name] for name in ("message", "method", "endpoint", "status", "api_key_name", "error_code")]
        assert facts == ["request", "POST", "/v1/generate", status, "environment", code]
        assert line["seconds"] > 0
    wait_for(lambda: line_of(answer, "generation"), "the line of the replica with the same request id")
    for file in (ray_logs / "serve").iterdir():
        for secret in (KEY, "987654321", "a-field-of-the-body", "a-value-of-the-body"):
            assert secret not in file.read_text(), file
