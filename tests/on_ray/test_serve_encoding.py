"""Encoders over real HTTP: the values of the job `encode`, and conditions of requests by audio and by text."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from audiodiff_core.audio import decode_audio
from audiodiff_core.checkpoint import EncoderRecord, ModelRecord, load_model, load_vae, save_model
from audiodiff_core.embeddings import Encoder, load_encoder
from audiodiff_core.mel import Mel, MelConfig, to_model
from audiodiff_core.mel.slices import Slicing, mel_slices
from audiodiff_core.models import PRESETS, build_network
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.mel_data.encodings import read_encodings
from audiodiff_platform.serve.job import served
from audiodiff_platform.serve.options import ServeOptions
from tests.random_models import save_conditional
from tests.serving import free_port

pytestmark = [pytest.mark.workers, pytest.mark.soak_short, pytest.mark.package("transformers")]


def _conditional(folder: Path, encoder: Encoder) -> Path:
    """Save a model whose encodings are those of an encoder."""
    record = EncoderRecord(name=encoder.name, digest=encoder.digest)
    return save_conditional(folder, encoder.dim, record, hop_length=512)


@pytest.fixture(scope="module")
def latent(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent model."""
    mel = MelConfig(x_res=32, y_res=32, hop_length=512)
    torch.manual_seed(0)
    network = build_network("tiny-latent", mel, vae=(loaded := load_vae(vae)))
    scheduler = PRESETS["tiny-latent"].objective.scheduler("ddim")
    folder = tmp_path_factory.mktemp("latent") / "model"
    save_model(folder, network, scheduler, mel, ModelRecord(recipe={}, data_digest="none", metrics={}), vae=loaded)
    return folder


@pytest.fixture(scope="module")
def client(
    local_ray: None, model: Path, latent: Path, encoder: Path, clap: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of a server with two encoders, a model for each of them, and a latent model."""
    root = tmp_path_factory.mktemp("models")
    of_audio, of_text = (_conditional(root / path.name, load_encoder(path)) for path in (encoder, clap))
    port = free_port()
    options = ServeOptions(
        model=(f"tiny={model}", f"of_audio={of_audio}", f"of_text={of_text}", f"latent={latent}"),
        encoder=(f"playlists={encoder}", f"clap={clap}"),
        port=port,
        max_replicas=1,
    )
    with served(options), httpx.Client(base_url=f"http://127.0.0.1:{port}/v1/", timeout=60) as session:
        yield session


def _values(encoder: Path, file: Path) -> list[float]:
    """Return the values that the encoder computes for a whole file."""
    loaded = load_encoder(encoder)
    with ExecutionProfile.here(device="cpu").applied():
        (vector,) = loaded.encode([decode_audio(file, loaded.sample_rate)], loaded.sample_rate)
    return [float(value) for value in vector]


def test_it_answers_with_the_values_of_the_job(
    client: httpx.Client, encoder: Path, clap: Path, loops: Path, tmp_path: Path
) -> None:
    listed = client.get("models").json()
    assert [(entry["name"], entry["text"]) for entry in listed["encoders"]] == [("playlists", False), ("clap", True)]
    assert [(entry["encoder"], entry["text"]) for entry in listed["models"]] == [
        (None, False),
        ("playlists", False),
        ("clap", True),
        (None, False),
    ]
    files = [loops / "loop_tabla.flac", loops / "bass_hit_c.flac"] * 10
    contents = [file.read_bytes() for file in files]
    answer = client.post("encode", files=[("audio", ("a", content)) for content in contents]).json()
    assert (answer["encoder"], answer["digest"]) == ("playlists", load_encoder(encoder).digest)
    assert [entry["index"] for entry in answer["data"]] == list(range(20))
    names = [file.name for file in files]
    (tmp_path / "in").mkdir()
    for file in files[:2]:
        (tmp_path / "in" / file.name).symlink_to(file)
    of_job = tmp_path / "encodings"
    encode(EncodeOptions(input_dir=str(tmp_path / "in"), encoder=str(encoder), output_dir=str(of_job), device="cpu"))
    expected = read_encodings(str(of_job)).vectors_for(names).tolist()
    assert [entry["encoding"] for entry in answer["data"]] == expected
    body = {"encoder": "clap", "audio": [base64.b64encode(content).decode() for content in contents[:1]]}
    answer = client.post("encode", json=body).json()
    assert np.allclose(answer["data"][0]["encoding"], _values(clap, files[0]), rtol=0, atol=0)


def test_a_latent_model_answers_with_the_latents_that_its_network_works_on(
    client: httpx.Client, latent: Path, loops: Path
) -> None:
    loaded = load_model(latent)
    mel, file = loaded.mel, loops / "loop_tabla.flac"
    (listed,) = (entry for entry in client.get("models").json()["models"] if entry["name"] == "latent")
    assert listed["latent_shape"] == [2, 8, 8]
    short = loops / "bass_hit_c.flac"
    contents = [("audio", ("a", each.read_bytes())) for each in (short, file)]
    answer = client.post("encode", data={"encoder": "latent"}, files=contents)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["encoder"], answer.json()["digest"]) == ("latent", loaded.digest)
    assert answer.json()["latent_shape"] == [2, 8, 8]
    for entry, path in zip(answer.json()["data"], (short, file), strict=True):
        tail = "pad" if path == short else "drop"
        images = np.stack([piece.image for piece in mel_slices(path, Mel(mel), Slicing(tail=tail))])
        with torch.no_grad(), ExecutionProfile.here(device="cpu").applied():
            pixels = torch.from_numpy(to_model(images))[:, None]
            expected = loaded.vae.encode(pixels).latent_dist.mode() * loaded.vae.config.scaling_factor
        assert np.allclose(entry["latents"], expected.flatten(1), atol=1e-5)
    tiny = client.post("encode", data={"encoder": "tiny"}, files=contents)
    assert (tiny.status_code, tiny.json()["error"]["param"]) == (404, "encoder")
    wrong = client.post("encode", data={"encoder": "latent"}, files=[*contents, ("audio", ("b", b"RIFF"))])
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "audio[2]")
    many = client.post("encode", data={"encoder": "latent"}, files=contents * 5)
    assert many.status_code == 422


def test_a_request_is_conditioned_by_audio_or_text(
    client: httpx.Client, encoder: Path, clap: Path, loops: Path
) -> None:
    file = loops / "loop_tabla.flac"
    fields: dict[str, Any] = {"model": "of_audio", "seed": 3, "steps": 2}
    wanted = client.post("generate", json={**fields, "encoding": _values(encoder, file)})
    assert wanted.status_code == 200, wanted.text
    text = base64.b64encode(file.read_bytes()).decode()
    assert client.post("generate", json={**fields, "like": text}).content == wanted.content
    assert client.post("generate", json=fields).content != wanted.content
    files = [("audio", ("a", file.read_bytes())), ("like", ("b", file.read_bytes()))]
    varied = client.post("variations", data={**fields, "seed": "3"}, files=files)
    assert varied.status_code == 200, varied.text
    with_values = {**fields, "audio": text, "encoding": _values(encoder, file)}
    assert varied.content == client.post("variations", json=with_values).content

    fields["model"] = "of_text"
    vector = load_encoder(clap).encode_text(["slow drum loop"])[0]  # type: ignore[attr-defined]
    wanted = client.post("generate", json={**fields, "encoding": [float(value) for value in vector]})
    assert client.post("generate", json={**fields, "prompt": "slow drum loop"}).content == wanted.content
    spoken = client.post("audio/generate", json={**fields, "input": "slow drum loop", "num_inference_steps": 2})
    assert spoken.status_code == 422
    del fields["steps"]
    spoken = client.post("audio/generate", json={**fields, "input": "slow drum loop", "num_inference_steps": 2})
    assert spoken.content == wanted.content


@pytest.mark.parametrize(
    ("route", "body", "status", "param"),
    [
        ("encode", {}, 422, "audio"),
        ("encode", {"audio": "%"}, 422, "audio"),
        ("encode", {"audio": "AAAA"}, 422, "audio"),
        ("encode", {"audio": "AAAA", "encoder": "/etc"}, 404, "encoder"),
        ("encode", {"audio": "AAAA", "model": "x"}, 422, "model"),
        ("generate", {"model": "of_audio", "like": "/etc/passwd"}, 422, "like"),
        ("generate", {"model": "of_audio", "like": "AAAA"}, 422, "like"),
        ("generate", {"model": "of_audio", "prompt": "choir"}, 422, "prompt"),
        ("generate", {"model": "of_text", "prompt": "choir", "like": "AAAA"}, 422, None),
        ("generate", {"model": "tiny", "prompt": "choir"}, 422, "prompt"),
        ("audio/generate", {"model": "tiny", "input": "choir"}, 422, "input"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    client: httpx.Client, route: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = client.post(route, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
