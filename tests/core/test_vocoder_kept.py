"""Kept samples: exact where kept, joined without jumps, and regenerated parts as good as without kept samples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from audiodiff_core.audio import decode_audio
from audiodiff_core.audio.crossfade import crossfade
from audiodiff_core.loops import level_db
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.vocoder import GriffinLim, Kept, kept_samples
from audiodiff_core.vocoder.batches import MelPower
from audiodiff_core.vocoder.frames import Frames
from audiodiff_core.vocoder.kept import FADE_S, kept_weights, splice
from tests.rare import rare

CONFIG = MelConfig(x_res=64, y_res=64, hop_length=1_024)
RATE = CONFIG.sample_rate
LOOPS = ["ambi_haunted_hum", "ambi_piano", "bass_drop_c", "guit_em9", "loop_garzul", "loop_mika", "loop_tabla"]
Audio = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Case:
    """A source, its image, and a span of columns to regenerate. Circular sources are periods."""

    samples: Audio
    image: npt.NDArray[np.uint8]
    circular: bool
    columns_kept: Bools

    @property
    def kept(self) -> Kept:
        return Kept(self.samples, kept_samples(self.columns_kept, CONFIG, len(self.samples)))

    @property
    def joins(self) -> list[int]:
        """First samples after each join."""
        return [int(at) for at in np.flatnonzero(self.kept.mask != np.roll(self.kept.mask, 1)) if self.circular or at]

    def heard(self, audio: Audio) -> npt.NDArray[np.int64]:
        return image_of(audio, self.circular, 0)[0].astype(np.int64)

    def near_joins(self, seconds: float) -> Bools:
        """Samples within a distance of a join."""
        distance = np.full(len(self.samples), len(self.samples))
        for join in self.joins:
            steps = np.abs(np.arange(len(distance)) + 0.5 - join)
            distance = np.minimum(distance, np.minimum(steps, len(steps) - steps) if self.circular else steps)
        return distance < seconds * RATE


def image_of(audio: Audio, circular: bool, reference_db: float | None) -> tuple[npt.NDArray[np.uint8], float]:
    """Return the image (64, 64) of audio and its reference in dB. The frames of a loop are those of its repetition."""
    repeats = 3 if circular else 1
    mel = Mel(CONFIG.model_copy(update={"x_res": 64 * repeats + 1}))
    images, references = mel.images(np.tile(audio, repeats)[np.newaxis], reference_db)
    start = 64 if circular else 0
    return images[0, :, start : start + 64], float(references[0])


def case(loops: Path, name: str, circular: bool, first: int = 24, count: int = 16) -> Case:
    length = (64 if circular else 63) * CONFIG.hop_length
    audio = decode_audio(str(loops / f"{name}.flac"), RATE)
    audio = np.resize(audio, length)
    image, reference_db = image_of(audio, circular, None)
    columns_kept = np.ones(64, np.bool_)
    columns_kept[np.arange(first, first + count) % 64] = False
    return Case(audio * np.float32(10 ** (-reference_db / 20)), image, circular, columns_kept)


@pytest.fixture(scope="module")
def vocoder() -> GriffinLim:
    return GriffinLim(CONFIG)


SPANS = [
    (False, 24, 16),
    rare(False, 0, 12),
    rare(False, 52, 12),
    rare(False, 30, 2),
    rare(True, 0, 12),
    (True, 58, 14),
]
"""Whether the audio is circular, the first regenerated column, and the number of regenerated columns."""


@pytest.mark.parametrize(("circular", "first", "count"), SPANS)
def test_kept_samples_are_exact_and_the_rest_is_as_good_as_without(
    loops: Path, vocoder: GriffinLim, circular: bool, first: int, count: int
) -> None:
    cases = [case(loops, name, circular, first, count) for name in LOOPS]
    images = np.stack([each.image for each in cases])
    plain = vocoder(images, range(len(cases)), circular)
    audios = vocoder(images, range(len(cases)), circular, kept=[each.kept for each in cases])
    errors, plain_errors = [], []
    for name, each, without, audio in zip(LOOPS, cases, plain, audios, strict=True):
        exact = each.kept.mask & ~each.near_joins(FADE_S)
        assert exact.sum() >= each.kept.mask.sum() - len(each.joins) * (FADE_S * RATE + 1)
        np.testing.assert_array_equal(audio[exact], each.samples[exact])
        regenerated = ~each.columns_kept
        errors.append(np.abs(each.heard(audio) - each.image)[:, regenerated].mean())
        plain_errors.append(np.abs(each.heard(without) - each.image)[:, regenerated].mean())
        made, source = audio[~each.kept.mask], each.samples[~each.kept.mask]
        assert abs(level_db(made) - level_db(source)) < 3, name
    assert np.mean(errors) <= 1.2 * np.mean(plain_errors)


@pytest.mark.parametrize(("circular", "first", "count"), [*SPANS, rare(False, 30, 1)])
def test_joins_have_no_jumps(loops: Path, vocoder: GriffinLim, circular: bool, first: int, count: int) -> None:
    """Compare the steps within 5 ms of each join with the largest step of the source within 50 ms."""
    for name in LOOPS:
        each = case(loops, name, circular, first, count)
        audio = vocoder(each.image[np.newaxis], [0], circular, kept=[each.kept])[0]
        steps, source_steps = (np.abs(np.diff(samples, prepend=samples[-1:])) for samples in (audio, each.samples))
        for join in each.joins:
            near, around = (
                (join + np.arange(-round(seconds * RATE), round(seconds * RATE))) % len(steps)
                for seconds in (0.005, 0.05)
            )
            assert steps[near].max() <= 1.5 * max(source_steps[around].max(), 1e-3 * source_steps.max()), name


def test_same_bytes_alone_or_in_company(loops: Path, vocoder: GriffinLim) -> None:
    one, other = case(loops, "loop_tabla", True), case(loops, "guit_em9", True, 60, 10)
    images = np.stack([one.image, other.image, other.image])
    audio = vocoder(images, [1, 2, 3], True, kept=[None, other.kept, None])
    np.testing.assert_array_equal(audio[[0, 2]], vocoder(images[[0, 2]], [1, 3], True))
    np.testing.assert_array_equal(audio[1], vocoder(images[1:2], [2], True, kept=[other.kept])[0])
    nothing = Kept(one.samples, np.zeros(len(one.samples), np.bool_))
    np.testing.assert_array_equal(vocoder(images[:1], [1], True, kept=[nothing])[0], audio[0])


def test_items_of_a_batch_that_keep_nothing_are_unchanged(loops: Path, vocoder: GriffinLim) -> None:
    """Check a batch as other devices process it: items with and without kept samples together."""
    each = case(loops, "loop_tabla", circular=False)
    frames = Frames.of(CONFIG, 64, vocoder.device)
    power = MelPower(CONFIG, vocoder.device)(torch.from_numpy(np.stack([each.image, each.image[:, ::-1], each.image])))
    power[2] = 0
    noise = torch.randn((3, frames.length), generator=torch.Generator().manual_seed(0))
    samples, weights = torch.zeros((2, 3, frames.length))
    samples[0] = torch.from_numpy(each.samples)
    weights[0] = torch.from_numpy(kept_weights(each.kept.mask, 882))
    without, mixed = (
        vocoder.reconstruct(power, noise, frames),
        vocoder.reconstruct(power, noise, frames, (samples, weights)),
    )
    assert mixed[1:].numpy().tobytes() == without[1:].numpy().tobytes()
    assert not torch.equal(mixed[0], without[0])


def test_another_seed_regenerates_other_samples_and_keeps_the_same(loops: Path, vocoder: GriffinLim) -> None:
    each = case(loops, "guit_em9", circular=False)
    one, other = vocoder(np.stack([each.image] * 2), [1, 2], kept=[each.kept] * 2)
    exact = each.kept.mask & ~each.near_joins(FADE_S)
    np.testing.assert_array_equal(one[exact], other[exact])
    assert not np.array_equal(one[~each.kept.mask], other[~each.kept.mask])


@pytest.mark.parametrize("circular", [False, True])
def test_silent_sources_and_images_stay_finite(loops: Path, vocoder: GriffinLim, circular: bool) -> None:
    each = case(loops, "loop_mika", circular)
    silent = Kept(np.zeros_like(each.samples), each.kept.mask)
    audio = vocoder(np.stack([each.image, np.zeros_like(each.image)]), [0, 0], circular, kept=[silent, each.kept])
    assert np.isfinite(audio).all()
    assert audio[0][~silent.mask].any()
    assert not audio[1][~each.kept.mask].any()


def test_a_source_that_is_kept_whole_is_the_audio(loops: Path, vocoder: GriffinLim) -> None:
    for circular in (False, True):
        each = case(loops, "loop_tabla", circular, count=0)
        audio = vocoder(each.image[np.newaxis], [0], circular, kept=[each.kept])[0]
        np.testing.assert_array_equal(audio, each.samples)


def test_columns_stand_for_the_samples_from_their_center_to_the_next() -> None:
    config = MelConfig(x_res=8, n_fft=64, hop_length=16)
    columns_kept = np.array([True, False, False, True, True, True, True, False])
    expected = np.ones(8 * 16, np.bool_)
    expected[16:48] = expected[112:] = False
    np.testing.assert_array_equal(kept_samples(columns_kept, config, 8 * 16), expected)
    np.testing.assert_array_equal(kept_samples(columns_kept, config, 7 * 16), expected[:112])
    with pytest.raises(ValueError, match="length 129: 8 columns stand for 128 samples"):
        kept_samples(columns_kept, config, 129)


def test_kept_samples_that_do_not_fit_are_refused(loops: Path, vocoder: GriffinLim) -> None:
    each = case(loops, "loop_tabla", circular=False)
    image = each.image[np.newaxis]
    with pytest.raises(ValueError, match="1 images with 2 entries in kept"):
        vocoder(image, [0], kept=[None, each.kept])
    with pytest.raises(ValueError, match="kept of 64512 samples: the audio of the image has 65536"):
        vocoder(image, [0], True, kept=[each.kept])
    samples, mask = np.zeros(4, np.float32), np.ones(4, np.bool_)
    with pytest.raises(ValueError, match=r"kept samples of shape \(4,\) and type float64: pass float32"):
        Kept(samples.astype(np.float64), mask)
    with pytest.raises(ValueError, match=r"mask of shape \(3,\) and type bool: pass bool \(4,\)"):
        Kept(samples, mask[:3])
    samples[1] = np.nan
    with pytest.raises(ValueError, match="kept samples hold NaN or infinity"):
        Kept(samples, mask)
    Kept(samples, np.array([True, False, True, True]))


def noise(seed: int, count: int = 4_000) -> Audio:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def spans_mask(*spans: tuple[int, int], count: int = 4_000) -> Bools:
    mask = np.zeros(count, np.bool_)
    for first, end in spans:
        mask[first:end] = True
    return mask


def test_fades_lie_in_the_kept_samples_next_to_the_joins() -> None:
    audio, source, mask = noise(0), noise(1), spans_mask((0, 1_000), (2_000, 3_000))
    spliced = splice(audio, Kept(source, mask), 100)
    np.testing.assert_array_equal(spliced[~mask], audio[~mask])
    faded = spans_mask((900, 1_000), (2_000, 2_100), (2_900, 3_000))
    np.testing.assert_array_equal(spliced[mask & ~faded], source[mask & ~faded])
    assert (spliced[faded] != source[faded]).mean() > 0.9
    np.testing.assert_array_equal(spliced[900:1_000], crossfade(source[900:1_000], audio[900:1_000]))
    np.testing.assert_array_equal(spliced[2_000:2_100], crossfade(audio[2_000:2_100], source[2_000:2_100]))
    assert abs(spliced[2_000] - audio[2_000]) < 0.05 * abs(source[2_000] - audio[2_000])


def test_a_short_span_is_divided_among_its_fades() -> None:
    audio, source = noise(0), noise(1)
    mask = spans_mask((1_000, 1_051), (2_000, 2_001), (3_930, 4_000))
    spliced = splice(audio, Kept(source, mask), 100)
    np.testing.assert_array_equal(spliced[1_000:1_025], crossfade(audio[1_000:1_025], source[1_000:1_025]))
    np.testing.assert_array_equal(spliced[1_025:1_026], source[1_025:1_026])
    np.testing.assert_array_equal(spliced[1_026:1_051], crossfade(source[1_026:1_051], audio[1_026:1_051]))
    assert spliced[2_000] == source[2_000]
    np.testing.assert_array_equal(spliced[3_930:], crossfade(audio[3_930:], source[3_930:]))
    np.testing.assert_array_equal(spliced[~mask], audio[~mask])


@pytest.mark.parametrize("roll", [0, 500, 1_500, 2_000, 3_999])
def test_a_circular_splice_does_not_depend_on_the_start_of_the_loop(roll: int) -> None:
    audio, source, mask = noise(0), noise(1), spans_mask((0, 700), (1_000, 2_000), (3_000, 4_000))
    expected = splice(audio, Kept(source, mask), 100, circular=True)
    np.testing.assert_array_equal(expected[3_100:3_999], source[3_100:3_999])
    np.testing.assert_array_equal(expected[:600], source[:600])
    rolled = Kept(np.roll(source, roll), np.roll(mask, roll))
    np.testing.assert_array_equal(splice(np.roll(audio, roll), rolled, 100, circular=True), np.roll(expected, roll))
    weights = kept_weights(np.roll(mask, roll), 100, circular=True)
    np.testing.assert_array_equal(weights, np.roll(kept_weights(mask, 100, circular=True), roll))


def test_a_join_at_the_end_of_a_loop_is_faded() -> None:
    audio, source, mask = noise(0), noise(1), spans_mask((2_000, 4_000))
    np.testing.assert_array_equal(splice(audio, Kept(source, mask), 100)[3_900:], source[3_900:])
    spliced = splice(audio, Kept(source, mask), 100, circular=True)
    np.testing.assert_array_equal(spliced[3_900:], crossfade(source[3_900:], audio[3_900:]))


@pytest.mark.parametrize("circular", [False, True])
def test_without_a_join_nothing_fades(circular: bool) -> None:
    audio, source = noise(0), noise(1)
    np.testing.assert_array_equal(splice(audio, Kept(source, spans_mask((0, 4_000))), 100, circular), source)
    np.testing.assert_array_equal(splice(audio, Kept(source, spans_mask()), 100, circular), audio)


def test_weights_rise_from_each_join() -> None:
    weights = kept_weights(spans_mask((1_000, 2_000)), 100)
    assert (weights[:1_000] == 0).all()
    assert (weights[1_100:1_900] == 1).all()
    assert (np.diff(weights[1_000:1_100]) > 0).all()
    np.testing.assert_array_equal(weights[1_900:2_000], weights[1_000:1_100][::-1])
    assert 0 < weights[1_000] < 0.01


@pytest.mark.parametrize("mix", [0, 0.5, 1])
def test_the_power_of_a_crossfade_is_constant(mix: float) -> None:
    """Check signals whose correlation is 0, medium and 1."""
    out, into = noise(0, 100_000), noise(1, 100_000)
    into = (mix * out + np.sqrt(1 - mix**2) * into).astype(np.float32)
    faded = crossfade(out, into)
    assert faded.dtype == np.float32
    assert np.square(faded.reshape(10, -1)).mean(axis=1) == pytest.approx(np.ones(10), abs=0.05)
