"""Spherical interpolation per item: ends, lengths, and parallel, opposite or zero noises."""

import numpy as np
import numpy.typing as npt
import pytest

from audiodiff_core.pipeline import chain, slerp

Noise = npt.NDArray[np.float32]


@pytest.fixture
def noises() -> Noise:
    return np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32)


def test_ends_and_middle(noises: Noise) -> None:
    one, other = noises[:2], noises[2:]
    np.testing.assert_allclose(slerp(one, other, 0), one, atol=1e-6)
    np.testing.assert_allclose(slerp(one, other, 1), other, atol=1e-6)
    middle = slerp(one, other, 0.5)
    for a, b, c in zip(one, middle, other, strict=True):
        angles = [np.arccos((p * q).sum() / np.linalg.norm(p) / np.linalg.norm(q)) for p, q in ((a, b), (b, c), (a, c))]
        assert angles[0] + angles[1] == pytest.approx(angles[2], rel=1e-3)
        assert np.linalg.norm(b) == pytest.approx(
            np.linalg.norm([np.linalg.norm(a), np.linalg.norm(c)]) / np.sqrt(2), rel=0.05
        )


def test_by_the_formula_for_a_right_angle() -> None:
    one, other = np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.float32)
    one[0, 0, 0], other[0, 1, 1] = 1, 1
    made = slerp(one, other, 1 / 3)
    assert (made[0, 0, 0], made[0, 1, 1]) == (pytest.approx(np.cos(np.pi / 6)), pytest.approx(np.sin(np.pi / 6)))


def test_items_do_not_meet_and_have_their_own_share(noises: Noise) -> None:
    one, other = noises[:2], noises[2:]
    together = slerp(one, other, np.array([0.25, 0.75]))
    np.testing.assert_array_equal(together[:1], slerp(one[:1], other[:1], 0.25))
    np.testing.assert_array_equal(together[1:], slerp(one[1:], other[1:], 0.75))


@pytest.mark.parametrize("factor", [1.0, 2.0, 1 + 1e-6])
def test_parallel_noises_give_the_straight_line(noises: Noise, factor: float) -> None:
    other = (noises * np.float32(factor)).astype(np.float32)
    np.testing.assert_allclose(slerp(noises, other, 0.5), (noises + other) / 2, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_opposite_noises_give_half_a_circle(noises: Noise, share: float) -> None:
    made = slerp(noises, -noises, share)
    for start, there in zip(noises, made, strict=True):
        assert np.linalg.norm(there) == pytest.approx(np.linalg.norm(start), rel=1e-5)
        assert (start * there).sum() / np.linalg.norm(start) ** 2 == pytest.approx(np.cos(np.pi * share), abs=1e-5)


def test_nothing_gives_the_straight_line(noises: Noise) -> None:
    np.testing.assert_allclose(slerp(np.zeros_like(noises), noises, 0.25), noises / 4, rtol=1e-6)


def test_chains(noises: Noise) -> None:
    along = chain(noises, 3)
    assert along.shape == (13, 1, 8, 8)
    np.testing.assert_allclose(along[[0, 4, 8, 12]], noises, atol=1e-6)
    np.testing.assert_array_equal(along[5], slerp(noises[1:2], noises[2:3], 0.25)[0])
    np.testing.assert_allclose(chain(noises, 0), noises, atol=1e-6)


def test_mistakes(noises: Noise) -> None:
    with pytest.raises(ValueError, match=r"shapes \(4, 1, 8, 8\) and \(3, 1, 8, 8\)"):
        slerp(noises, noises[:3], 0.5)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"share {share} is not in"):
            slerp(noises, noises, share)
    with pytest.raises(ValueError, match="a chain of 1 noises with 2 between"):
        chain(noises[:1], 2)
