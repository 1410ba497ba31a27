"""Longer trainings: an autoencoder, latents made during or before training, and encodings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from audiodiff_core.checkpoint import load_model, load_vae
from audiodiff_core.models import network_digest
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.mel_data.encodings import encoded_table
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from audiodiff_platform.train.autoencoder import train_vae
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import TrainOptions, TrainVaeOptions
from tests.in_process import in_process

COMMON: dict[str, Any] = {
    "train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 5,
    "num_workers": 1,
    "report_to": (),
    "preview_count": 0,
}


def _lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def vae(local_ray: None, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of a small autoencoder whose discriminator starts at step 10."""
    run = tmp_path_factory.mktemp("vae") / "run"
    common = {name: value for name, value in COMMON.items() if name != "preview_count"}
    options = TrainVaeOptions(
        dataset_name=str(dataset),
        output_dir=str(run),
        preset="vae-tiny",
        max_train_steps=20,
        adversarial_start=10,
        **common,
    )
    with in_process():
        summary = train_vae(options)
        assert summary["steps"] == 20
        again = train_vae(options)
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    return run


def test_the_autoencoder_is_diffusers_with_a_measured_scale(vae: Path, dataset: Path) -> None:
    network = AutoencoderKL.from_pretrained(vae / "model")
    (checkpoint,) = (vae / "state").glob("step-000000020-*")
    averaged = load_file(checkpoint / "ema.safetensors")
    assert all(torch.equal(averaged[name], tensor) for name, tensor in network.state_dict().items())
    data = MelDataset(str(dataset))
    images = torch.from_numpy(np.stack([data.all_images()])).permute(1, 0, 2, 3) / 127.5 - 1
    with torch.no_grad():
        latents = (
            network.encode(images).latent_dist.sample(generator=torch.Generator().manual_seed(0))
            * network.config.scaling_factor
        )
    assert float(latents.std()) == pytest.approx(1, abs=0.05)
    assert (
        json.loads((vae / "model" / "audiodiff.json").read_text())["metrics"]["scaling_factor"]
        == network.config.scaling_factor
    )
    first, second = _lines(vae)
    assert "discriminator" not in first
    assert second["discriminator"] > 0
    assert all(second[name] < first[name] for name in ("reconstruction", "spectral"))


def test_latents_made_before_train_as_those_made_meanwhile(vae: Path, dataset: Path, tmp_path: Path) -> None:
    encode(
        EncodeOptions(
            dataset_name=str(dataset),
            output_dir=str(tmp_path / "latents"),
            latents=True,
            vae=str(vae / "model"),
            num_workers=1,
        )
    )
    runs = {name: tmp_path / name for name in ("meanwhile", "before")}
    for name, more in (("meanwhile", {}), ("before", {"latents": str(tmp_path / "latents")})):
        options = {**COMMON, "preset": "tiny-latent", "vae": str(vae / "model"), "max_train_steps": 20, **more}
        train(TrainOptions(dataset_name=str(dataset), output_dir=str(runs[name]), **options))
    losses = {name: [line["loss"] for line in _lines(run)] for name, run in runs.items()}
    assert losses["meanwhile"] == pytest.approx(losses["before"], rel=1e-4)
    model = load_model(runs["before"] / "model")
    assert network_digest(model.vae) == network_digest(load_vae(vae / "model"))
    (loop,) = LoopPipeline.of(model, ExecutionProfile(batch_size=1)).generate([GenerateRequest(seed=0, steps=2)])
    assert loop.image.shape == (32, 32)


def test_a_conditional_network_learns_with_encodings(local_ray: None, dataset: Path, tmp_path: Path) -> None:
    names = sorted(MelDataset(str(dataset)).audio_files())
    vectors = np.random.default_rng(0).standard_normal((len(names), 8)).astype(np.float32)
    (tmp_path / "encodings.parquet").write_bytes(encoded_table(names, vectors, "test", "0"))
    options = {
        **COMMON,
        "preset": "tiny-conditional",
        "encodings": str(tmp_path / "encodings.parquet"),
        "max_train_steps": 20,
    }
    options |= {"report_to": ("tensorboard",), "preview_count": 1}
    train(TrainOptions(dataset_name=str(dataset), output_dir=str(tmp_path / "run"), **options))
    first, second = _lines(tmp_path / "run")
    assert second["loss"] < first["loss"]
    model = load_model(tmp_path / "run" / "model")
    assert model.unet.config.cross_attention_dim == 8
    assert list((tmp_path / "run" / "tensorboard" / "validation").iterdir())
    requests = [GenerateRequest(seed=0, steps=2, guidance_scale=scale) for scale in (1.0, 3.0)]
    plain, guided = (
        next(
            iter(LoopPipeline.of(model, ExecutionProfile(batch_size=1)).generate([request], encodings=vectors[:1]))
        ).image
        for request in requests
    )
    assert not np.array_equal(plain, guided)
