"""Rendering on a thread beside sampling: the loops, failures and errors are those of rendering in turn."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from audiodiff_core.audio import Samples
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.pipeline import Failure, LoopPipeline, Step
from audiodiff_core.pipeline.rendering import Renderer
from audiodiff_core.pipeline.running import Runner
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_core.sampling.requests import ExtendRequest, InpaintRequest, InterpolateRequest, Request
from audiodiff_core.vocoder import GriffinLim

PROFILE = ExecutionProfile(batch_size=4)
EPSILON = Objective(prediction_type="epsilon", zero_terminal_snr=False)
LATENTS = EPSILON.model_copy(update={"clip_sample": False})
DEADLINE_S = 30

Make = Callable[..., LoopPipeline]


@pytest.fixture
def make(make_unet: Callable[[int], Any], make_vae: Callable[[int], Any], tiny_mel: MelConfig) -> Make:
    """Return a builder of pipelines that render beside sampling, or in turn."""

    def build(beside: bool, latent: bool = False, vocoder: Any = None) -> LoopPipeline:
        mel = tiny_mel.model_copy(update={"x_res": 32, "y_res": 32}) if latent else tiny_mel
        scheduler = (LATENTS if latent else EPSILON).scheduler()
        pipeline = LoopPipeline(
            make_unet(0), scheduler, mel, PROFILE, vocoder and vocoder(mel), vae=make_vae(1) if latent else None
        )
        renderer = Renderer(pipeline.codec, pipeline.vocoder, pipeline.geometry)
        pipeline._runner = Runner(pipeline.sampler, renderer, beside=beside)
        return pipeline

    return build


def requests(pipeline: LoopPipeline) -> list[Request]:
    window_s = pipeline.mel.x_res * pipeline.mel.hop_length / pipeline.mel.sample_rate
    return [
        *(GenerateRequest(seed=seed, steps=2 + seed, seamless=seed % 2 == 1) for seed in range(5)),
        GenerateRequest(seed=5, steps=3, width=2 * pipeline.mel.x_res),
        InpaintRequest(kind="inpaint", seed=6, steps=3, source="image", regenerate=((0, window_s / 2),)),
        ExtendRequest(kind="extend", seed=7, steps=2, duration_s=2.5 * window_s),
        InterpolateRequest(kind="interpolate", seed=8, steps=2, seeds=(1, 2)),
    ]


def contents(pipeline: LoopPipeline) -> dict[int, tuple[bytes, bytes]]:
    image = np.random.default_rng(0).integers(0, 256, (pipeline.mel.y_res, pipeline.mel.x_res), np.uint8)
    loops = pipeline.generate(requests(pipeline), sources={"image": image})
    return {loop.number: (loop.image.tobytes(), loop.audio.tobytes()) for loop in loops}


@pytest.mark.parametrize("latent", [False, True])
def test_loops_are_those_of_rendering_in_turn(make: Make, latent: bool) -> None:
    beside, in_turn = (contents(make(flag, latent)) for flag in (True, False))
    assert len(beside) == 9
    assert beside == in_turn


class Patient(GriffinLim):
    """A vocoder that starts when others have allowed it."""

    allowed: threading.Event

    def __call__(self, *arguments: Any, **options: Any) -> Samples:
        assert self.allowed.wait(DEADLINE_S), "nothing was sampled while this was rendered"
        return super().__call__(*arguments, **options)


def test_steps_are_sampled_while_a_loop_is_rendered(make: Make) -> None:
    pipeline = make(True, vocoder=Patient)
    assert isinstance(pipeline.vocoder, Patient)
    allowed = pipeline.vocoder.allowed = threading.Event()

    def on_step(step: Step) -> None:
        if step.number == 1 and step.step == 5:
            allowed.set()

    short, long = GenerateRequest(seed=1, steps=2), GenerateRequest(seed=2, steps=6)
    assert [loop.number for loop in pipeline.generate([short, long], on_step=on_step)] == [0, 1]


class Broken(GriffinLim):
    """A vocoder that fails."""

    def __call__(self, *arguments: Any, **options: Any) -> Samples:
        raise MemoryError("no memory is left")


@pytest.mark.parametrize("beside", [False, True])
def test_an_error_of_rendering_reaches_the_caller(make: Make, beside: bool) -> None:
    pipeline = make(beside, vocoder=Broken)
    with pytest.raises(MemoryError, match="no memory is left"):
        list(pipeline.generate([GenerateRequest(seed=seed, steps=2) for seed in range(6)]))


@pytest.mark.parametrize("beside", [False, True])
def test_an_image_that_is_not_finite_fails_alone(make: Make, beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make(beside, latent=True)
    decode = pipeline.codec.decode

    def broken(samples: torch.Tensor, *options: Any) -> tuple[Images, Any]:
        images, finite = decode(samples, *options)
        return images, finite & (len(samples) < 2)

    monkeypatch.setattr(pipeline.codec, "decode", broken)
    steps = [2, 2, 3]
    outcomes = {
        outcome.number: outcome
        for outcome in pipeline.outcomes([GenerateRequest(seed=seed, steps=count) for seed, count in enumerate(steps)])
    }
    assert [isinstance(outcomes[number], Failure) for number in range(3)] == [True, True, False]


def test_a_call_that_is_given_up_leaves_no_thread(make: Make) -> None:
    before = threading.active_count()
    loops: Any = make(True).generate(GenerateRequest(seed=seed, steps=2) for seed in range(100))
    next(loops)
    assert threading.active_count() == before + 1
    loops.close()
    assert threading.active_count() == before
