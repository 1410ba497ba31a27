"""Inversion of sampling: the inverted noise reproduces the image.

The tests cover all prediction types, zero terminal SNR, latents and conditions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AudioDiffusionPipeline as Oracle
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers import Mel as OracleMel
from PIL import Image

from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Item, Sampler, initial_noise
from tests.rare import rare, rare_but

PROFILE = ExecutionProfile(batch_size=4)
STEPS = 50


def model(predicts: str, zero_terminal_snr: bool = False, spacing: str = "leading") -> Any:
    """Return a scheduler without clipping, which cannot be inverted."""
    if predicts == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDIMScheduler(
        prediction_type=predicts, rescale_betas_zero_snr=zero_terminal_snr, timestep_spacing=spacing, clip_sample=False
    )


MODELS = {
    "epsilon": model("epsilon"),
    "v": model("v_prediction"),
    "v-zero-snr": model("v_prediction", True, "trailing"),
    "sample": model("sample"),
    "sample-zero-snr": model("sample", True, "trailing"),
    "flow": model("flow"),
}


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the PSNR, in dB, between images in [-1, 1]."""
    return float(10 * torch.log10(4 / (one - other).square().mean()))


class AsSample(torch.nn.Module):
    """A network that predicts clean images, computed from a network that predicts v.

    At low noise the prediction depends on the sample, as in a trained network.
    """

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.unet, self.config, self.signals = unet, unet.config, scheduler.alphas_cumprod

    def forward(self, sample: torch.Tensor, timesteps: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        signal = self.signals[timesteps.long()].reshape(-1, 1, 1, 1)
        return (signal.sqrt() * sample - (1 - signal).sqrt() * self.unet(sample, timesteps, return_dict=False)[0],)


def round_trip(
    sampler: Sampler, refinements: int, request: GenerateRequest, encoding: torch.Tensor | None = None
) -> float:
    """Return the PSNR, in dB, of an image after sampling, inversion and sampling again."""
    noise = initial_noise(3, sampler.shape(8))
    ((_, first),) = sampler.sample([Item(request, 8, noise=noise, encoding=encoding)])
    ((_, inverted),) = sampler.invert([Item(request, 8, clean=first, refinements=refinements, encoding=encoding)])
    ((_, second),) = sampler.sample([Item(request, 8, noise=inverted, encoding=encoding)])
    return psnr(first, second)


@pytest.mark.parametrize("name", rare_but({"v-zero-snr", "sample", "flow"}, MODELS))
def test_round_trip(make_unet: Callable[[int], Any], name: str) -> None:
    unet = AsSample(make_unet(1), MODELS[name]) if name.startswith("sample") else make_unet(1)
    sampler = Sampler(unet, MODELS[name], ExecutionProfile(batch_size=1))
    request = GenerateRequest(steps=STEPS if name in ("epsilon", "v-zero-snr") else 10)
    refined = round_trip(sampler, 2, request)
    print(f"{name}: {refined:.1f} dB")
    assert refined >= 30
    if name in ("epsilon", "flow"):
        rough = round_trip(sampler, 0, request)
        print(f"{name}: {rough:.1f} dB without refinement")
        assert 10 < rough < refined


def test_round_trip_under_guidance(make_conditional: Callable[[int], Any]) -> None:
    sampler = Sampler(make_conditional(1), MODELS["v-zero-snr"], ExecutionProfile(batch_size=2))
    assert round_trip(sampler, 3, GenerateRequest(steps=10, guidance_scale=2.0), torch.linspace(-1, 1, 8)) >= 30


def test_without_refinement_it_is_the_reference_pipelines(make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    oracle = Oracle(
        vqvae=None, unet=make_unet(1).eval(), mel=OracleMel(**tiny_mel.model_dump()), scheduler=MODELS["epsilon"]
    )
    oracle.set_progress_bar_config(disable=True)
    expected = oracle.encode([Image.fromarray(picture)], steps=20)
    pipeline = LoopPipeline(make_unet(1), MODELS["epsilon"], tiny_mel, PROFILE)
    noises = pipeline.invert([GenerateRequest(steps=20)], [picture], refinements=0)
    np.testing.assert_allclose(noises, expected.numpy(), atol=2e-4)


@pytest.mark.parametrize("kind", ["pixel", "latent", rare("conditional")])
def test_pipelines_make_the_source_again(
    kind: str,
    make_unet: Callable[[int], Any],
    make_conditional: Callable[[int], Any],
    make_vae: Callable[[int], Any],
    tiny_mel: MelConfig,
) -> None:
    mel = tiny_mel.model_copy(update={"x_res": 32, "y_res": 32}) if kind == "latent" else tiny_mel
    unet = make_conditional(0) if kind == "conditional" else make_unet(0)
    pipeline = LoopPipeline(unet, MODELS["v-zero-snr"], mel, PROFILE, vae=make_vae(0) if kind == "latent" else None)
    encodings = np.ones((3, 8), np.float32) if kind == "conditional" else None
    requests = [GenerateRequest(seed=seed, steps=6) for seed in range(3)]
    made = sorted(pipeline.generate(requests, encodings), key=lambda loop: loop.number)
    noises = pipeline.invert(requests, [loop.image for loop in made], encodings, refinements=4)
    assert noises.shape == (3, 1, 16, 16)
    again = sorted(pipeline.generate(requests, encodings, noises), key=lambda loop: loop.number)
    alone = pipeline.invert(
        requests[1:2], [made[1].image], None if encodings is None else encodings[1:2], refinements=4
    )
    assert alone.tobytes() == noises[1:2].tobytes()
    if kind == "latent":
        # A random autoencoder does not reproduce its pictures. Round trips without an autoencoder are tested above.
        return
    for one, other in zip(made, again, strict=True):
        difference: npt.NDArray[np.float64] = one.image.astype(float) - other.image
        assert 10 * np.log10(255**2 / max(1e-9, np.square(difference).mean())) > 40


@pytest.mark.parametrize(
    ("values", "refinements", "message"),
    [
        ({"scheduler": "euler"}, 0, "scheduler euler with eta 0.0 cannot be inverted"),
        ({"eta": 0.5}, 0, "scheduler ddim with eta 0.5 cannot be inverted"),
        ({}, -1, "refinements -1 is not in 0 to 100"),
    ],
)
def test_what_cannot_be_inverted_is_refused(
    make_unet: Callable[[int], Any], tiny_mel: MelConfig, values: dict[str, Any], refinements: int, message: str
) -> None:
    pipeline = LoopPipeline(make_unet(0), MODELS["v"], tiny_mel, PROFILE)
    with pytest.raises(ValueError, match=message):
        pipeline.invert([GenerateRequest(steps=2, **values)], [np.zeros((16, 16), np.uint8)], refinements=refinements)


@pytest.mark.parametrize("name", ["v-zero-snr", "sample-zero-snr", "flow"])
def test_one_step_from_pure_noise_cannot_be_inverted(make_unet: Callable[[int], Any], name: str) -> None:
    sampler = Sampler(make_unet(1), MODELS[name], ExecutionProfile(batch_size=1))
    with pytest.raises(ValueError, match=r"steps 1: .* use 2 or more to invert"):
        list(sampler.invert([Item(GenerateRequest(steps=1), 8, clean=torch.zeros(sampler.shape(8)))]))
