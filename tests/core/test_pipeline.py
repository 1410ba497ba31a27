"""The pipeline refuses parts that do not fit, and makes the same loop of the same request in any company."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from audiodiff_core.mel import MelConfig
from audiodiff_core.objectives import Objective
from audiodiff_core.pipeline import PEAK, AudioDiffusionPipeline, normalise
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_core.vocoder import GriffinLim

PROFILE = ExecutionProfile(batch_size=4)
SCHEDULER = Objective().scheduler("ddim")


@pytest.fixture(scope="module")
def pipeline(make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> AudioDiffusionPipeline:
    return AudioDiffusionPipeline(make_unet(0), SCHEDULER, tiny_mel, PROFILE)


def test_vocoder_of_another_mel_is_refused(unet: Any, tiny_mel: MelConfig) -> None:
    other = tiny_mel.model_copy(update={"hop_length": 128, "n_iter": 4})
    with pytest.raises(ValueError, match="vocoder") as raised:
        AudioDiffusionPipeline(unet, SCHEDULER, tiny_mel, PROFILE, GriffinLim(other))
    assert "hop_length 128 against 256" in str(raised.value)
    assert "n_iter 4 against 32" in str(raised.value)


@pytest.mark.parametrize("sides", [{"x_res": 32}, {"y_res": 8}])
def test_network_for_other_images_is_refused(unet: Any, tiny_mel: MelConfig, sides: dict[str, int]) -> None:
    mel = tiny_mel.model_copy(update=sides)
    with pytest.raises(ValueError, match="network") as raised:
        AudioDiffusionPipeline(unet, SCHEDULER, mel, PROFILE)
    assert "(16, 16)" in str(raised.value)
    assert str((mel.y_res, mel.x_res)) in str(raised.value)


def test_loops_have_length_and_peak(pipeline: AudioDiffusionPipeline, tiny_mel: MelConfig) -> None:
    requests = [GenerateRequest(seed=seed, steps=2) for seed in range(6)]
    made = list(pipeline.generate(requests))
    assert {loop.request for loop in made} == set(requests)
    for loop in made:
        assert (loop.image.shape, str(loop.image.dtype)) == ((16, 16), "uint8")
        assert (loop.audio.shape, str(loop.audio.dtype)) == ((tiny_mel.audio_size,), "float32")
        assert 20 * np.log10(np.abs(loop.audio).max()) == pytest.approx(-1, abs=1e-3)


def test_same_request_same_bytes_in_any_company(pipeline: AudioDiffusionPipeline, make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> None:
    wanted = GenerateRequest(seed=5, steps=3, scheduler="ddpm")
    (alone,) = pipeline.generate([wanted])
    company = [GenerateRequest(seed=seed, steps=2 + seed % 3) for seed in range(5)]
    fresh = AudioDiffusionPipeline(make_unet(0), SCHEDULER, tiny_mel, PROFILE)
    for requests in ([*company, wanted], [wanted, *company], [company[0], wanted]):
        (again,) = (loop for loop in fresh.generate(requests) if loop.request == wanted)
        assert again.image.tobytes() == alone.image.tobytes()
        assert again.audio.tobytes() == alone.audio.tobytes()


def test_audio_is_that_of_the_image_and_the_seed(pipeline: AudioDiffusionPipeline, tiny_mel: MelConfig) -> None:
    (loop,) = pipeline.generate([GenerateRequest(seed=9, steps=2)])
    expected = GriffinLim(tiny_mel)(loop.image[np.newaxis], [9])[0]
    np.testing.assert_array_equal(loop.audio, normalise(expected))


def test_normalise() -> None:
    assert pytest.approx(0.891_25, abs=1e-5) == PEAK
    assert np.abs(normalise(np.array([0.01, -0.02], np.float32))).max() == pytest.approx(PEAK)
    assert normalise(np.array([3, -1], np.float32)).dtype == np.float32
    assert not normalise(np.zeros(10, np.float32)).any()
    assert len(normalise(np.zeros(0, np.float32))) == 0
