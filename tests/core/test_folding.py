"""Networks that work on blocks of pixels: the same samples, files that diffusers can run, and checked settings."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMPipeline, DiffusionPipeline
from torch.nn import functional as F

from audiodiff_core.checkpoint import CheckpointError, ModelRecord, load_model, save_model
from audiodiff_core.compat import AudioDiffusionPipeline
from audiodiff_core.mel import MelConfig, to_model
from audiodiff_core.models import PRESETS, UNFOLDED, build_network, folded, image_sides, sample_channels, unfolded
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_core.sampling.network import Network
from audiodiff_core.training import TrainBatch, TrainState, train_step, with_draws
from audiodiff_core.training.cost import training_cost

PRESET = PRESETS["tiny-folded"]
MEL = MelConfig(x_res=32, y_res=16, sample_rate=22_050, n_fft=512, hop_length=256)
PROFILE = ExecutionProfile(batch_size=2)


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return build_network("tiny-folded", MEL).eval()


@pytest.fixture
def folder(tmp_path: Path, network: Any) -> Path:
    record = ModelRecord(recipe={"preset": "tiny-folded"}, data_digest="0123456789abcdef", metrics={})
    save_model(tmp_path / "model", network, PRESET.objective.scheduler("ddim"), MEL, record)
    return tmp_path / "model"


def diffusers_code(folder: Path) -> str:
    """Return the code of a model card that loads the model in diffusers."""
    (code,) = re.findall(r"With diffusers:\n\n```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    return str(code)


def test_folding_moves_every_pixel_of_a_block_to_a_channel() -> None:
    samples = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    blocks = folded(samples, (2, 2))
    assert blocks.shape == (1, 8, 2, 3)
    assert blocks[0, :4, 1, 2].tolist() == samples[0, 0, 2:4, 4:6].flatten().tolist()
    assert torch.equal(unfolded(blocks, (2, 2)), samples)
    assert torch.equal(blocks, F.pixel_unshuffle(samples, 2))
    assert folded(samples, UNFOLDED) is unfolded(samples, UNFOLDED) is samples


def test_a_block_of_bands_keeps_the_columns() -> None:
    samples = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    blocks = folded(samples, (2, 1))
    assert blocks.shape == (1, 4, 2, 6)
    assert torch.equal(blocks[0, 2:, 1], samples[0, 1, 2:])
    assert torch.equal(unfolded(blocks, (2, 1)), samples)
    assert torch.equal(unfolded(folded(samples, (4, 3)), (4, 3)), samples)


def test_a_folded_network_takes_images(network: Any) -> None:
    assert network.config.in_channels == 4
    assert (image_sides(network), sample_channels(network)) == ((16, 32), 1)
    samples, timesteps = torch.randn(2, 1, 16, 32), torch.tensor([3.0, 700.0])
    with torch.inference_mode():
        predictions = Network(network, PROFILE)(samples, timesteps)
        expected = network(F.pixel_unshuffle(samples, 2), timesteps, return_dict=False)[0]
    torch.testing.assert_close(predictions, F.pixel_shuffle(expected, 2), atol=1e-5, rtol=0)


def test_a_circular_folded_network_moves_with_its_input(network: Any) -> None:
    samples, timesteps = torch.randn(2, 1, 16, 32), torch.tensor([3.0, 700.0])
    moved = samples.roll(PRESET.side_multiples[1], dims=-1)
    with torch.inference_mode():
        predictions = Network(network, PROFILE)(samples, timesteps, circular=True)
        others = Network(network, PROFILE)(moved, timesteps, circular=True)
    torch.testing.assert_close(others, predictions.roll(PRESET.side_multiples[1], dims=-1), atol=1e-5, rtol=0)


def test_a_saved_model_loads_here_and_in_diffusers(
    folder: Path, network: Any, caplog: pytest.LogCaptureFixture
) -> None:
    changes: list[str] = []
    model = load_model(folder, changes)
    assert changes == []
    assert not caplog.records
    requests = [GenerateRequest(seed=seed, steps=2) for seed in range(2)]
    loops = [loop.image for loop in LoopPipeline.of(model, PROFILE).generate(requests)]
    before = LoopPipeline(network, model.scheduler, MEL, PROFILE).generate(requests)
    assert all(np.array_equal(one, loop.image) for one, loop in zip(loops, before, strict=True))
    theirs = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(theirs, DDIMPipeline)
    assert theirs(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 16, 4)
    made: dict[str, Any] = {"SOURCE": folder}
    exec(diffusers_code(folder), made)
    assert made["images"].shape == (1, 16, 32)
    blocks, timestep = torch.randn(1, 4, 8, 16), torch.tensor([9])
    with torch.inference_mode():
        ours = network(blocks, timestep).sample
        torch.testing.assert_close(theirs.unet(blocks, timestep).sample, ours, atol=1e-5, rtol=0)


def test_the_original_interface_generates_with_a_folded_model(folder: Path) -> None:
    pipeline = AudioDiffusionPipeline.from_pretrained(folder)
    noise = torch.randn(1, 1, 16, 32)
    (image,) = pipeline(steps=3, noise=noise.clone(), return_dict=True).images  # type: ignore[union-attr]
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(3)
    blocks = F.pixel_unshuffle(noise, 2)
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            prediction = pipeline.unet(blocks, timestep).sample
            blocks = scheduler.step(prediction, timestep, blocks).prev_sample
    levels = ((F.pixel_shuffle(blocks, 2) / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(image), levels[0, 0])


def test_the_loss_is_that_of_the_unfolded_sample() -> None:
    torch.manual_seed(0)
    network = build_network("tiny-folded", MEL)
    accelerator = Accelerator(cpu=True)
    state = TrainState(accelerator, network, PRESET.objective, 1e-3, 5)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 16, 32), np.uint8))
    batch = with_draws(state, TrainBatch(torch.arange(4), images))
    drawn = batch.drawn
    assert drawn is not None
    assert drawn.noise.shape == (4, 1, 16, 32)
    clean, alphas = to_model(images.unsqueeze(1)), PRESET.objective.scheduler("ddpm").alphas_cumprod[drawn.timesteps]
    signal, noise_scale = (scale.sqrt().reshape(-1, 1, 1, 1) for scale in (alphas, 1 - alphas))
    with torch.inference_mode():
        noisy = F.pixel_unshuffle(signal * clean + noise_scale * drawn.noise, 2)
        prediction = F.pixel_shuffle(network(noisy, drawn.timesteps, return_dict=False)[0], 2)
        expected = (prediction - signal * drawn.noise + noise_scale * clean).square().mean()
    loss, _ = train_step(accelerator, state, [batch], 1e-3)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def test_the_cost_is_that_of_the_folded_sides() -> None:
    plain, blocks = (training_cost(build_network(preset, MEL), 2) for preset in ("tiny", "tiny-folded"))
    assert 0 < blocks.activation_bytes < plain.activation_bytes


def test_the_card_of_a_conditional_model_loads_the_network(tmp_path: Path) -> None:
    network = build_network("tiny-conditional-folded", MEL, encoding_dim=4).eval()
    record = ModelRecord(recipe={}, data_digest="0123456789abcdef", metrics={})
    folder = tmp_path / "model"
    save_model(folder, network, PRESET.objective.scheduler("ddim"), MEL, record)
    made: dict[str, Any] = {"SOURCE": folder}
    exec(diffusers_code(folder), made)
    blocks, timestep, encodings = torch.randn(1, 4, 8, 16), torch.tensor([9]), torch.randn(1, 1, 4)
    with torch.inference_mode():
        ours = network(blocks, timestep, encodings).sample
        torch.testing.assert_close(made["unet"](blocks, timestep, encodings).sample, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (3, "blocks of 9 must divide out_channels 4"),
        (0, "from 1 to 16"),
        ("2", "from 1 to 16"),
        (True, "from 1 to 16"),
        ([2, 3], "blocks of 6 must divide out_channels 4"),
        ([2], "from 1 to 16, or two of them"),
        ([2, 0], "from 1 to 16"),
        ({"bands": 2}, "from 1 to 16"),
    ],
)
def test_a_damaged_fold_is_refused(folder: Path, fold: Any, message: str) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "fold": fold}))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_a_fold_that_does_not_fit_the_channels_is_refused(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "fold": 1}))
    with pytest.raises(CheckpointError, match="out_channels 4: must be 1 for mel images"):
        load_model(folder)
