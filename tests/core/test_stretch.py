"""Loops stretched to another length: pitch and level are kept, and the result is a loop."""

import numpy as np
import numpy.typing as npt
import pytest

from audiodiff_core.loops import level_db, seam_score
from audiodiff_core.loops.stretch import stretch_circular

RATE = 22_050


def tones(length: int, *hertz: float) -> npt.NDArray[np.float32]:
    """Return the mean of sines with whole numbers of periods, as close to `hertz` as possible."""
    turns = [np.arange(length) / length * round(frequency * length / RATE) for frequency in hertz]
    mean: npt.NDArray[np.float64] = np.mean([np.sin(2 * np.pi * turn) for turn in turns], axis=0)
    return mean.astype(np.float32)


@pytest.mark.parametrize("factor", [0.5, 0.83, 0.999, 1.003, 1.27, 2.0])
def test_pitch_level_and_periodicity_are_kept(factor: float) -> None:
    loop = tones(2 * RATE, 110, 441.5, 1_003, 5_000)
    length = round(len(loop) * factor)
    longer = stretch_circular(loop, length, RATE)
    assert longer.shape == (length,)
    assert longer.dtype == np.float32
    assert level_db(longer) == pytest.approx(level_db(loop), abs=0.1)
    assert seam_score(longer, RATE) <= 1.1
    power = np.square(np.abs(np.fft.rfft(longer)))
    resolution = RATE / length
    near = sum(
        power[round(hertz / resolution) - 2 : round(hertz / resolution) + 3].sum()
        for hertz in (110, 441.5, 1_003, 5_000)
    )
    assert near > 0.99 * power.sum()


def test_every_place_of_the_circle_is_alike() -> None:
    """Check that a rolled loop gives the rolled result, up to the positions of the frames."""
    loop = tones(2 * RATE, 110, 441.5) * (1 + 0.5 * tones(2 * RATE, 3))
    longer = stretch_circular(loop, 3 * RATE, RATE)
    rolled = stretch_circular(np.roll(loop, RATE), 3 * RATE, RATE)
    envelope, of_rolled = (
        np.abs(audio).reshape(-1, 1_050).max(axis=1) for audio in (np.roll(longer, round(1.5 * RATE)), rolled)
    )
    assert np.abs(envelope - of_rolled).max() < 0.1


def test_the_same_length_is_the_same_loop() -> None:
    loop = tones(RATE, 441)
    assert np.array_equal(stretch_circular(loop, RATE, RATE), loop)


def test_shorter_than_a_window() -> None:
    loop = tones(600, 441)
    longer = stretch_circular(loop, 700, RATE)
    assert longer.shape == (700,)
    assert level_db(longer) == pytest.approx(level_db(loop), abs=0.5)


def test_silence_stays_silent() -> None:
    assert not stretch_circular(np.zeros(RATE, np.float32), RATE + 500, RATE).any()


@pytest.mark.parametrize("length", [0, RATE // 2 - 1, 2 * RATE + 1])
def test_a_length_out_of_reach_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"stretched to {length}"):
        stretch_circular(tones(RATE, 441), length, RATE)
