"""Conditioning: a network trained on the encodings of two kinds of sound makes the requested kind."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from audiodiff_core.audio import Samples
from audiodiff_core.checkpoint import EncoderRecord, load_model
from audiodiff_core.embeddings import load_encoder
from audiodiff_core.embeddings.audio_encoder import AudioEncoder
from audiodiff_core.mel import Mel
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.mel_data.encodings import read_encodings
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import TrainOptions

RATE, SECONDS, EACH = 22_050, 1.5, 12


def drone(random: np.random.Generator) -> Samples:
    """Return a held low tone with overtones."""
    time = np.arange(int(RATE * SECONDS)) / RATE
    overtones, pitch = np.arange(1, 6)[:, None], random.uniform(80, 160)
    partials = np.sin(2 * np.pi * pitch * overtones * time + random.uniform(0, 6, (5, 1))) / overtones
    audio: Samples = (partials.sum(axis=0) / 4).astype(np.float32)
    return audio


def hiss(random: np.random.Generator) -> Samples:
    """Return bright noise in a few bursts."""
    time = np.arange(int(RATE * SECONDS)) / RATE
    bursts = np.exp(-8 * ((time * random.uniform(3, 6) + random.uniform(0, 1)) % 1))
    return (np.diff(random.standard_normal(len(time) + 1)) * bursts * 0.2).astype(np.float32)


KINDS = {"drone": drone, "hiss": hiss}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an AudioEncoder with random weights and with batch statistics of these sounds.

    The statistics normalize the layers, as in a trained encoder.
    """
    torch.manual_seed(0)
    network, random = AudioEncoder(), np.random.default_rng(1)
    size = network.mel.slice_size
    sounds = np.stack([np.pad(kind(random), (0, size))[:size] for kind in KINDS.values() for _ in range(8)])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum = None
    images, _ = Mel(network.mel).images(sounds)
    with torch.no_grad():
        network.train()(torch.from_numpy(images / np.float32(255))[:, None])
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "config.json").write_text('{"_class_name": "AudioEncoder"}')
    save_file(network.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.soak
def test_outputs_lie_closer_to_their_own_encoding_than_to_the_other_kinds(
    local_ray: None, encoder: Path, tmp_path: Path
) -> None:
    audio, dataset, encodings, run = (str(tmp_path / name) for name in ("audio", "dataset", "encodings", "run"))
    Path(audio).mkdir()
    random = np.random.default_rng(0)
    for kind, sound in KINDS.items():
        for number in range(EACH):
            soundfile.write(f"{audio}/{kind}-{number:02}.wav", sound(random), RATE)
    prepare(PrepareOptions(input_dir=audio, output_dir=dataset, resolution="32", hop_length=1024, num_workers=1))
    encode(EncodeOptions(input_dir=audio, output_dir=encodings, encoder=str(encoder), num_workers=1))
    train(
        TrainOptions(
            dataset_name=dataset, encodings=encodings, output_dir=run, preset="tiny-conditional",
            max_train_steps=100, train_batch_size=8, learning_rate=1e-3, lr_warmup_steps=10, ema_decay=0.95,
            num_workers=1, report_to=(), preview_count=0,
        )
    )  # fmt: skip
    record = load_model(Path(run) / "model").record
    assert record is not None
    assert record.encoder == EncoderRecord(name=f"audio-encoder:{encoder.name}", digest=load_encoder(encoder).digest)
    network, table = load_encoder(encoder), read_encodings(encodings)
    own = {kind: table.vectors_for([f"{kind}-{number:02}.wav" for number in range(EACH)]) for kind in KINDS}
    pipeline = LoopPipeline.of(load_model(Path(run) / "model"), ExecutionProfile(batch_size=8))
    for kind, other in (("drone", "hiss"), ("hiss", "drone")):
        requests = [GenerateRequest(seed=seed, steps=10, guidance_scale=2.0) for seed in range(4)]
        loops = pipeline.generate(requests, encodings=own[kind][:4])
        made = sorted(loops, key=lambda loop: loop.number)
        heard = np.stack([network.encode([loop.audio], RATE)[0] for loop in made])
        to_own, to_other = (np.linalg.norm(heard - own[name][:4], axis=1).mean() for name in (kind, other))
        assert to_own < to_other, kind
