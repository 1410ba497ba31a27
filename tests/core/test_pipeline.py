"""The pipeline in all modes.

Images equal diffusers' images of the same noise. A loop does not depend on the other loops of a call. Errors name the
invalid value.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AudioDiffusionPipeline as Oracle
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers import Mel as OracleMel

from audiodiff_core.diffusion.objectives import Objective, SavedScheduler
from audiodiff_core.diffusion.seeds import derived, initial_noise
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.pipeline import PEAK, Audio, Loop, LoopPipeline, normalize
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_core.vocoder import GriffinLim
from tests.rare import rare

PROFILE = ExecutionProfile(batch_size=4)
SCHEDULER = Objective().scheduler("ddim")
EPSILON = Objective(prediction_type="epsilon", zero_terminal_snr=False)

Image = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def pipeline(make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> LoopPipeline:
    return LoopPipeline(make_unet(0), SCHEDULER, tiny_mel, PROFILE)


@pytest.fixture(scope="module")
def latent_mel(tiny_mel: MelConfig) -> MelConfig:
    return tiny_mel.model_copy(update={"x_res": 32, "y_res": 32})


@pytest.fixture(scope="module")
def latent(make_unet: Callable[[int], Any], make_vae: Callable[[int], Any], latent_mel: MelConfig) -> LoopPipeline:
    return LoopPipeline(make_unet(0), SCHEDULER, latent_mel, PROFILE, vae=make_vae(3))


@pytest.fixture(scope="module")
def conditional(make_conditional: Callable[[int], Any], tiny_mel: MelConfig) -> LoopPipeline:
    return LoopPipeline(make_conditional(0), SCHEDULER, tiny_mel, PROFILE)


def requests(count: int, steps: int = 2, **more: Any) -> list[GenerateRequest]:
    return [GenerateRequest(seed=seed, steps=steps, **more) for seed in range(count)]


def pictures(count: int, side: int = 16, width: int | None = None) -> list[Image]:
    return list(np.random.default_rng(count).integers(0, 256, (count, side, width or side), np.uint8))


def by_number(loops: Any) -> list[Loop]:
    return sorted(loops, key=lambda loop: int(loop.number))


def encodings(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((count, 8)).astype(np.float32)


class TestParts:
    def test_vocoder_of_another_mel_is_refused(self, unet: Any, tiny_mel: MelConfig) -> None:
        other = tiny_mel.model_copy(update={"hop_length": 128, "n_iter": 4})
        with pytest.raises(ValueError, match="vocoder") as raised:
            LoopPipeline(unet, SCHEDULER, tiny_mel, PROFILE, GriffinLim(other))
        assert "hop_length 128 against 256" in str(raised.value)
        assert "n_iter 4 against 32" in str(raised.value)

    @pytest.mark.parametrize("sides", [{"x_res": 32}, {"y_res": 8}])
    def test_network_for_other_images_is_refused(self, unet: Any, tiny_mel: MelConfig, sides: dict[str, int]) -> None:
        mel = tiny_mel.model_copy(update=sides)
        with pytest.raises(ValueError, match="network") as raised:
            LoopPipeline(unet, SCHEDULER, mel, PROFILE)
        assert "(16, 16)" in str(raised.value)
        assert str((mel.y_res, mel.x_res)) in str(raised.value)

    def test_autoencoder_that_does_not_fit_is_refused(
        self, unet: Any, make_vae: Callable[[int], Any], tiny_mel: MelConfig
    ) -> None:
        with pytest.raises(ValueError, match=r"network for samples of \(16, 16\).*\(32, 32\) in pixels"):
            LoopPipeline(unet, SCHEDULER, tiny_mel, PROFILE, vae=make_vae(0))


class TestGenerate:
    def test_loops_have_length_peak_and_number(self, pipeline: LoopPipeline, tiny_mel: MelConfig) -> None:
        batch = requests(6)
        made = by_number(pipeline.generate(batch))
        assert [loop.request for loop in made] == [pipeline.resolved(request) for request in batch]
        for loop in made:
            assert (loop.image.shape, str(loop.image.dtype)) == ((16, 16), "uint8")
            assert (loop.audio.shape, str(loop.audio.dtype)) == ((tiny_mel.audio_size,), "float32")
            assert 20 * np.log10(np.abs(loop.audio).max()) == pytest.approx(-1, abs=1e-3)

    def test_same_request_same_bytes_in_any_company(
        self, pipeline: LoopPipeline, make_unet: Callable[[int], Any], tiny_mel: MelConfig
    ) -> None:
        wanted = GenerateRequest(seed=5, steps=3, scheduler="ddpm")
        (alone,) = pipeline.generate([wanted])
        company = [GenerateRequest(seed=seed, steps=2 + seed % 3, width=32 if seed % 2 else None) for seed in range(5)]
        fresh = LoopPipeline(make_unet(0), SCHEDULER, tiny_mel, PROFILE)
        for batch in ([*company, wanted], [wanted, *company], [company[0], wanted]):
            again = by_number(fresh.generate(batch))[batch.index(wanted)]
            assert again.image.tobytes() == alone.image.tobytes()
            assert again.audio.tobytes() == alone.audio.tobytes()

    def test_audio_is_that_of_the_image_and_the_seed(self, pipeline: LoopPipeline, tiny_mel: MelConfig) -> None:
        (loop,) = pipeline.generate([GenerateRequest(seed=9, steps=2)])
        expected = GriffinLim(tiny_mel)(loop.image[np.newaxis], [9])[0]
        np.testing.assert_array_equal(loop.audio, normalize(expected))

    def test_widths_and_seamless_loops(self, pipeline: LoopPipeline, tiny_mel: MelConfig) -> None:
        wide, round_, both = by_number(
            pipeline.generate(
                [*requests(1, width=64), *requests(1, seamless=True), *requests(1, width=8, seamless=True)]
            )
        )
        assert (wide.image.shape, wide.audio.shape) == ((16, 64), (63 * tiny_mel.hop_length,))
        assert (round_.image.shape, round_.audio.shape) == ((16, 16), (16 * tiny_mel.hop_length,))
        assert (both.image.shape, both.audio.shape) == ((16, 8), (8 * tiny_mel.hop_length,))
        assert b"smpl" in round_.file(tiny_mel.sample_rate, "wav"), "where to repeat"
        assert b"smpl" not in wide.file(tiny_mel.sample_rate, "wav")
        assert round_.file(tiny_mel.sample_rate, "flac").startswith(b"fLaC")

    def test_defaults_are_the_models(
        self, pipeline: LoopPipeline, make_unet: Callable[[int], Any], tiny_mel: MelConfig
    ) -> None:
        resolved = pipeline.resolved(GenerateRequest())
        assert (resolved.scheduler, resolved.steps, resolved.width) == ("dpm++_sde", 8, 16)
        flow = LoopPipeline(make_unet(0), FlowMatchEulerDiscreteScheduler(), tiny_mel, PROFILE)
        assert flow.resolved(GenerateRequest()).scheduler == "flow_euler"
        (loop,) = flow.generate([GenerateRequest(steps=2)])
        assert loop.image.std() > 10

    @pytest.mark.parametrize("name", ["ddim", rare("ddpm")])
    @pytest.mark.parametrize("kind", ["latent", "conditional", "conditional latent"])
    def test_images_are_those_of_diffusers_pipeline(
        self,
        kind: str,
        name: SavedScheduler,
        make_unet: Callable[[int], Any],
        make_conditional: Callable[[int], Any],
        make_vae: Callable[[int], Any],
        tiny_mel: MelConfig,
        latent_mel: MelConfig,
    ) -> None:
        def parts() -> tuple[Any, Any]:
            return (make_conditional if "conditional" in kind else make_unet)(1).eval(), make_vae(
                2
            ) if "latent" in kind else None

        mel = latent_mel if "latent" in kind else tiny_mel
        unet, vae = parts()
        oracle = Oracle(vqvae=vae, unet=unet, mel=OracleMel(**mel.model_dump()), scheduler=EPSILON.scheduler(name))
        oracle.set_progress_bar_config(disable=True)
        unet, vae = parts()
        ours = LoopPipeline(unet, EPSILON.scheduler(name), mel, PROFILE, vae=vae)
        given = encodings(1) if "conditional" in kind else None
        (loop,) = ours.generate([GenerateRequest(seed=4, steps=5, scheduler=name)], given)
        ((expected,), _) = oracle(
            steps=5,
            generator=initial_noise(4),
            step_generator=derived(4, "step"),
            encoding=None if given is None else torch.from_numpy(given[:, None]),
            return_dict=False,
        )
        assert loop.image.std() > 3
        assert np.abs(np.asarray(expected).astype(int) - loop.image).max() <= 1

    def test_given_noise_takes_the_place_of_the_seeds(self, pipeline: LoopPipeline) -> None:
        batch = requests(2)
        noises = pipeline.noise(batch)
        expected = by_number(pipeline.generate(batch))
        swapped = by_number(pipeline.generate(batch, noises=noises[::-1].copy()))
        for one, other in zip(expected, reversed(swapped), strict=True):
            np.testing.assert_array_equal(one.image, other.image)


class TestVary:
    def test_less_strength_keeps_more_of_the_source(self, pipeline: LoopPipeline, latent: LoopPipeline) -> None:
        sources = pictures(5)
        distances = []
        for strength in (0.1, 0.5, 1.0):
            loops = by_number(pipeline.vary(requests(5, 10), sources, strength))
            distances.append(
                np.mean(
                    [
                        np.abs(loop.image.astype(int) - source).mean()
                        for loop, source in zip(loops, sources, strict=True)
                    ]
                )
            )
        assert distances[0] < 0.6 * distances[1] < 0.6 * distances[2]
        assert len(list(latent.vary(requests(3, 4), pictures(3, 32)))) == 3

    def test_strength_and_start_step_say_the_same(self, pipeline: LoopPipeline) -> None:
        (one,), (other,) = (
            list(pipeline.vary(requests(1, 10), pictures(1), **arguments))
            for arguments in ({"strength": 0.3}, {"start_step": 7})
        )
        np.testing.assert_array_equal(one.image, other.image)

    def test_audio_files_arrays_and_slices(
        self, pipeline: LoopPipeline, tiny_mel: MelConfig, hum: Any, wav: Any, tmp_path: Any
    ) -> None:
        samples = hum(3 * tiny_mel.slice_size)
        (tmp_path / "hum.wav").write_bytes(wav(samples))
        image = Mel(tiny_mel).images(samples[np.newaxis, tiny_mel.slice_size : 2 * tiny_mel.slice_size])[0][0]
        sources = [Audio(samples, tiny_mel.sample_rate, slice=1), Audio(tmp_path / "hum.wav", slice=1), image]
        loops = by_number(pipeline.vary([GenerateRequest(seed=1, steps=4)] * 3, sources))
        for loop in loops[1:]:
            np.testing.assert_array_equal(loop.image, loops[0].image)


class TestInpaint:
    def test_what_is_not_made_anew_is_the_source(self, pipeline: LoopPipeline, tiny_mel: MelConfig) -> None:
        second = tiny_mel.sample_rate / tiny_mel.hop_length
        sources = pictures(5)
        pixels = np.zeros((16, 16), np.bool_)
        pixels[2:7, 3:9] = True
        spans: list[Any] = [
            [(0, 4 / second)],
            [(12 / second, 16 / second)],
            [(5 / second, 9.5 / second)],
            pixels,
            [(0, 1 / second), (8 / second, 9 / second)],
        ]
        anew = [slice(0, 4), slice(12, 16), slice(5, 10), None, None]
        for loop in pipeline.inpaint(requests(5), sources, spans):
            source, columns = sources[loop.number], anew[loop.number]
            made = pixels if loop.number == 3 else np.zeros((16, 16), np.bool_)
            if columns is not None:
                made[:, columns] = True
            if loop.number == 4:
                made[:, [0, 8]] = True
            np.testing.assert_array_equal(loop.image[~made], source[~made])
            assert (loop.image[made] != source[made]).mean() > 0.8

    def test_latent_models_keep_the_pixels_too(self, latent: LoopPipeline) -> None:
        source = pictures(1, 32)[0]
        mask = np.zeros((32, 32), np.bool_)
        mask[:, 13:] = True
        (loop,) = latent.inpaint(requests(1), [source], [mask])
        np.testing.assert_array_equal(loop.image[:, :13], source[:, :13])
        assert (loop.image[:, 13:] != source[:, 13:]).mean() > 0.5

    def test_any_batch_any_company(self, pipeline: LoopPipeline) -> None:
        sources = pictures(6)
        masks = [np.random.default_rng(number).random((16, 16)) < 0.5 for number in range(6)]
        together = by_number(pipeline.inpaint(requests(6), sources, masks))
        (alone,) = pipeline.inpaint(requests(6)[4:5], sources[4:5], masks[4:5])
        np.testing.assert_array_equal(together[4].image, alone.image)


class TestLonger:
    def test_extend_goes_on_from_the_source(self, pipeline: LoopPipeline, tiny_mel: MelConfig) -> None:
        sources = pictures(5)
        duration = 50 * tiny_mel.hop_length / tiny_mel.sample_rate
        loops = pipeline.extend(requests(5), duration, sources)
        assert [loop.number for loop in loops] == list(range(5))
        for loop, source in zip(loops, sources, strict=True):
            assert (loop.image.shape, loop.audio.shape) == ((16, 50), (49 * tiny_mel.hop_length,))
            np.testing.assert_array_equal(loop.image[:, :16], source)
        (alone,) = pipeline.extend(requests(5)[3:4], duration, sources[3:4])
        np.testing.assert_array_equal(alone.image, loops[3].image)
        assert alone.audio.tobytes() == loops[3].audio.tobytes()

    def test_without_sources_it_begins_as_generate_does_and_does_not_repeat_itself(
        self, pipeline: LoopPipeline, tiny_mel: MelConfig
    ) -> None:
        (loop,) = pipeline.extend(requests(1, 3), 40 * tiny_mel.hop_length / tiny_mel.sample_rate)
        (first,) = pipeline.generate(requests(1, 3))
        np.testing.assert_array_equal(loop.image[:, :16], first.image)
        windows = [loop.image[:, start : start + 8] for start in (8, 16, 24, 32)]
        assert len({window.tobytes() for window in windows}) == 4

    def test_latent_windows_join(self, latent: LoopPipeline, latent_mel: MelConfig) -> None:
        (loop,) = latent.extend(
            requests(1), 75 * latent_mel.hop_length / latent_mel.sample_rate, pictures(1, 32), overlap=0.25
        )
        assert loop.image.shape == (32, 75)
        np.testing.assert_array_equal(loop.image[:, :32], pictures(1, 32)[0])

    def test_remix_lasts_as_long_as_the_track_and_follows_it(
        self, pipeline: LoopPipeline, tiny_mel: MelConfig, hum: Any
    ) -> None:
        tracks = [Audio(hum(count), tiny_mel.sample_rate) for count in (9_000, 4_000, 1_000)]
        near, far = (pipeline.remix(requests(3, 10), tracks, strength) for strength in (0.1, 0.9))
        for track, one, other in zip(tracks, near, far, strict=True):
            assert isinstance(track.samples, np.ndarray)
            columns = -(-len(track.samples) // tiny_mel.hop_length)
            assert one.image.shape == other.image.shape == (16, columns)
            image = (
                Mel(tiny_mel.model_copy(update={"x_res": max(8, columns)}))
                .images(track.samples[np.newaxis])[0][0, :, :columns]
                .astype(int)
            )
            assert np.abs(one.image - image).mean() < 0.5 * np.abs(other.image - image).mean()

    def test_a_loop_that_was_made_here_is_remixed_as_a_whole(self, pipeline: LoopPipeline, tiny_mel: MelConfig) -> None:
        (loop,) = pipeline.generate([GenerateRequest(seed=0, steps=2, seamless=True)])
        assert len(loop.audio) % tiny_mel.hop_length == 0
        (remixed,) = pipeline.remix(requests(1, 2), [Audio(loop.audio, tiny_mel.sample_rate)], 0.5)
        assert remixed.image.shape == loop.image.shape


class TestInterpolate:
    def test_the_ends_are_the_keys(self, pipeline: LoopPipeline) -> None:
        noises = pipeline.noise(requests(3))
        request = GenerateRequest(seed=11, steps=2)
        along = by_number(pipeline.interpolate(request, noises, between=2))
        assert [loop.number for loop in along] == list(range(7))
        keys = by_number(pipeline.generate([request] * 3, noises=noises))
        for key, place in zip(keys, (0, 3, 6), strict=True):
            np.testing.assert_array_equal(along[place].image, key.image)
        assert len({loop.image.tobytes() for loop in along}) == 7

    def test_encodings_go_along(self, conditional: LoopPipeline) -> None:
        noises = np.repeat(conditional.noise(requests(1)), 2, axis=0)
        given = encodings(2)
        along = by_number(conditional.interpolate(requests(1)[0], noises, 1, given))
        expected = by_number(
            conditional.generate(
                requests(1) * 3, np.stack([given[0], given.mean(axis=0), given[1]]), np.repeat(noises[:1], 3, axis=0)
            )
        )
        for one, other in zip(along, expected, strict=True):
            assert np.abs(one.image.astype(int) - other.image).max() <= 1


class TestMistakes:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"eta": 0.5, "scheduler": "euler"}, "eta 0.5: scheduler euler has no eta"),
            ({"scheduler": "flow_euler"}, "scheduler flow_euler does not fit"),
            ({"guidance_scale": 2.0}, "guidance_scale 2.0: the model is not conditional"),
            ({"width": 15}, "width 15: the network takes multiples of 2 columns up to 128"),
            ({"width": 130}, "width 130: the network takes multiples of 2 columns up to 128"),
        ],
    )
    def test_requests(self, pipeline: LoopPipeline, values: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            list(pipeline.generate([GenerateRequest(**values)]))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (np.zeros((1, 7), np.float32), r"encoding of shape \(7,\): the model takes 8"),
            (np.zeros((2, 8), np.float32), "2 encodings for 1 requests"),
            (np.full((1, 8), np.nan, np.float32), "the model takes 8 finite numbers"),
        ],
    )
    def test_encodings(self, conditional: LoopPipeline, given: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            list(conditional.generate(requests(1), given))

    def test_encodings_for_an_unconditional_model(self, pipeline: LoopPipeline) -> None:
        with pytest.raises(ValueError, match="encodings: the model is not conditional"):
            list(pipeline.generate(requests(1), encodings(1)))

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (Audio(np.zeros(5_000, np.float32), 44_100), "sample_rate 44100 of the audio: the model's is 22050 Hz"),
            (Audio(np.zeros(5_000, np.float32)), "sample_rate None of the audio"),
            (Audio(np.full(5_000, np.nan, np.float32), 22_050), "audio holds NaN or infinity, first at sample 0"),
            (Audio(np.zeros((2, 5_000), np.float32), 22_050), r"audio of shape \(2, 5000\)"),
            (Audio(np.zeros(5_000, np.int16), 22_050), "type int16"),
            (Audio(np.zeros(0, np.float32), 22_050), r"audio of shape \(0,\)"),
            (Audio(np.zeros(5_000, np.float32), 22_050, slice=1), "slice 1: the audio has 1"),
            (Audio(np.zeros(9_000, np.float32), 22_050, slice=-1), "slice -1: the audio has 2"),
            (np.zeros((16, 15), np.uint8), r"image of shape \(16, 15\)"),
            (np.zeros((16, 16), np.float32), "type float32"),
        ],
    )
    def test_sources(self, pipeline: LoopPipeline, source: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            list(pipeline.vary(requests(1), [source]))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"strength": 0.0}, "strength 0.0 is not in"),
            ({"strength": 1.1}, "strength 1.1 is not in"),
            ({"strength": float("nan")}, "strength nan is not in"),
            ({"start_step": 2}, "start_step 2: there are 2 steps, use 0 to 1"),
            ({"start_step": -1}, "start_step -1"),
            ({"start_step": 1, "strength": 0.5}, "strength 0.5 and start_step 1"),
        ],
    )
    def test_strengths(self, pipeline: LoopPipeline, values: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            list(pipeline.vary(requests(1), pictures(1), **values))

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            ([(0.0, 0.2)], r"mask from 0.0 s to 0.2 s: the slice is from 0 to 0.186 s"),
            ([(-0.1, 0.1)], "mask from -0.1 s"),
            ([(0.1, 0.1)], "mask from 0.1 s to 0.1 s"),
            ([(float("nan"), 0.1)], "mask from nan s"),
            ([], "mask leaves nothing to regenerate"),
            (np.zeros((16, 15), np.bool_), r"mask of shape \(16, 15\)"),
            (np.zeros((16, 16), np.uint8), "type uint8"),
        ],
    )
    def test_masks(self, pipeline: LoopPipeline, mask: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            list(pipeline.inpaint(requests(1), pictures(1), [mask]))

    def test_counts(self, pipeline: LoopPipeline) -> None:
        for call in (
            lambda: pipeline.vary(requests(2), pictures(1)),
            lambda: pipeline.inpaint(requests(1), pictures(1), []),
            lambda: pipeline.extend(requests(1), 1.0, pictures(2)),
            lambda: pipeline.remix(requests(1), []),
            lambda: pipeline.generate(requests(1), noises=np.zeros((2, 1, 16, 16), np.float32)),
        ):
            with pytest.raises(ValueError, match=r"pass one per request"):
                list(call())

    def test_lengths(self, pipeline: LoopPipeline) -> None:
        for duration in (0.0, -1.0, 1e9, float("nan")):
            with pytest.raises(ValueError, match=f"duration {duration} s"):
                pipeline.extend(requests(1), duration)
        for overlap in (0.0, 1.0, float("nan")):
            with pytest.raises(ValueError, match=f"overlap {overlap} is not between 0 and 1"):
                pipeline.extend(requests(1), 1.0, overlap=overlap)
        with pytest.raises(ValueError, match="seamless"):
            pipeline.extend(requests(1, seamless=True), 1.0)
        assert pipeline.geometry.columns(0.1) == 10
        assert pipeline.geometry.columns(5e-324) == pipeline.geometry.columns(1e-4) >= 2
        with pytest.raises(ValueError, match=r"duration 9 s: use up to 1.49 s, or extend"):
            pipeline.geometry.columns(9)

    def test_noises(self, pipeline: LoopPipeline) -> None:
        with pytest.raises(ValueError, match=r"noise of shape \(1, 16, 8\): pass \(1, 16, 16\)"):
            list(pipeline.generate(requests(1), noises=np.zeros((1, 1, 16, 8), np.float32)))


def test_normalize() -> None:
    assert pytest.approx(0.891_25, abs=1e-5) == PEAK
    assert np.abs(normalize(np.array([0.01, -0.02], np.float32))).max() == pytest.approx(PEAK)
    assert normalize(np.array([3, -1], np.float32)).dtype == np.float32
    assert not normalize(np.zeros(10, np.float32)).any()
    assert len(normalize(np.zeros(0, np.float32))) == 0
