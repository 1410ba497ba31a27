"""Philox4x32-10: the published vectors, words by their counters, and normals of the right distribution."""

import math

import numpy as np
import pytest
import torch

from audiodiff_core.diffusion.philox import CPU_CHUNK, Purpose, box_muller, normals, philox4x32, words
from tests.rare import rare

MAX = 0xFFFF_FFFF
VECTORS = [  # counter, key and block of kat_vectors of Random123
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MAX, MAX, MAX, MAX), (MAX, MAX), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def by_hand(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Return a block, computed with Python's integers as in the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MAX, (k1 + 0xBB67AE85) & MAX
    return [c0, c1, c2, c3]


def numbered(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


@pytest.mark.parametrize(("counter", "key", "block"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], block: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert torch.cat(philox4x32((c0, c1, c2, c3), key)).tolist() == list(block)
    assert by_hand((counter[0], counter[1], counter[2], counter[3]), key) == list(block)


def test_a_block_of_words_is_that_of_its_counter() -> None:
    seed, number = 2**63 - 2**33 - 3, 2**40 + 5
    drawn = words(seed, numbered(0, number), Purpose.SCALARS, 11, "cpu")
    assert (drawn.shape, drawn.dtype) == ((2, 11), torch.int64)
    for row, counted in enumerate((0, number)):
        low, high = counted & MAX, counted >> 32
        blocks = [by_hand((block, Purpose.SCALARS, low, high), (seed & MAX, seed >> 32)) for block in range(3)]
        assert drawn[row].tolist() == [word for block in blocks for word in block][:11]
    assert words(0, numbered(0), Purpose.NOISE, 4, "cpu").tolist() == [list(VECTORS[0][2])]


def test_counters_of_any_shapes_broadcast_and_do_not_change() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 1, 1), (1, 4, 1), (1, 1, 3), ()]
    c0, c1, c2, c3 = (torch.randint(0, 1 << 32, shape, generator=generator) for shape in shapes)
    before = [word.clone() for word in (c0, c1, c2, c3)]
    blocks = philox4x32((c0, c1, c2, c3), (7, MAX))
    assert [word.shape for word in blocks] == [(5, 4, 3)] * 4
    assert all(torch.equal(word, kept) for word, kept in zip((c0, c1, c2, c3), before, strict=True))
    for place in np.ndindex(5, 4, 3):
        counter = int(c0[place[0]]), int(c1[0, place[1]]), int(c2[0, 0, place[2]]), int(c3)
        assert [int(word[place]) for word in blocks] == by_hand(counter, (7, MAX))


@pytest.mark.parametrize("shape", [(1, 6, 7), (3,), (), rare((1, 301, 303))])
def test_the_draws_of_a_sample_do_not_depend_on_its_batch(shape: tuple[int, ...]) -> None:
    numbers = numbered(9, 2**41 + 1, 3)
    drawn = normals(4, numbers, Purpose.NOISE, shape, "cpu")
    assert (drawn.shape, drawn.dtype) == ((3, *shape), torch.float32)
    for row in range(3):
        assert torch.equal(normals(4, numbers[row : row + 1], Purpose.NOISE, shape, "cpu")[0], drawn[row])
    assert numbers.tolist() == [9, 2**41 + 1, 3]


def test_chunks_of_a_large_draw_fit_together() -> None:
    numbers, side = torch.arange(9), 256
    assert len(numbers) * side**2 / 4 > CPU_CHUNK, "the draw has several chunks"
    drawn = normals(0, numbers, Purpose.NOISE, (side, side), "cpu").flatten(1)
    blocks = words(0, numbers, Purpose.NOISE, side**2, "cpu").unflatten(1, (-1, 4))
    expected = [value for pair in (0, 2) for value in box_muller(blocks[:, :, pair], blocks[:, :, pair + 1])]
    assert torch.equal(drawn, torch.cat(expected, dim=1))


def test_words_at_the_extremes_give_finite_normals() -> None:
    ends = torch.tensor([0, 1, 2**31, MAX - 1, MAX])
    first, second = box_muller(ends.repeat_interleave(5), ends.repeat(5))
    assert first.isfinite().all()
    assert second.isfinite().all()
    length = torch.hypot(first, second).reshape(5, 5)
    expected = torch.tensor([(2 * math.log(2.0**32 / (word + 1))) ** 0.5 for word in ends.tolist()])
    torch.testing.assert_close(length, expected.unsqueeze(1).expand(5, 5), atol=1e-3, rtol=1e-6)
    assert float(length.max()) == pytest.approx(6.6604, abs=1e-4)
    assert float(length[4].max()) == 0
    quarters = torch.tensor([0, 2**30, 2**31, 3 * 2**30])
    cosine, sine = box_muller(torch.full((4,), round(2**32 * math.exp(-0.5)) - 1), quarters)
    torch.testing.assert_close(cosine, torch.tensor([1.0, 0.0, -1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(sine, torch.tensor([0.0, 1.0, 0.0, -1.0]), atol=1e-6, rtol=0)


def test_every_bit_of_the_words_is_even() -> None:
    drawn = words(1, torch.arange(400), Purpose.SCALARS, 100, "cpu")
    assert 0 <= int(drawn.min()) < int(drawn.max()) <= MAX
    ones = torch.stack([(drawn >> bit & 1).double().mean() for bit in range(32)])
    assert float((ones - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(drawn.numel())


def test_normals_have_the_moments_and_the_tails_of_a_normal_distribution() -> None:
    values = normals(2, torch.arange(16), Purpose.NOISE, (1, 128, 128), "cpu").double().flatten()
    count = len(values)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(values.pow(power).mean()) - expected) < 5 * math.sqrt(variance / count), power
    for bound in (1.0, 2.0, 3.0, 4.0):
        tail = math.erfc(bound / math.sqrt(2)) / 2
        for side in (values, -values):
            assert abs(float((side > bound).double().mean()) - tail) < 5 * math.sqrt(tail / count), bound
    distance = (torch.special.ndtr(values.sort().values) - (torch.arange(count) + 0.5) / count).abs().max()
    assert float(distance) < 1.95 / math.sqrt(count), "the test of Kolmogorov and Smirnov, p = 0.001"


def test_normals_are_independent() -> None:
    numbers, shape = torch.arange(64), (4, 32, 32)
    drawn = normals(3, numbers, Purpose.NOISE, shape, "cpu").flatten(1)
    quarters = drawn.unflatten(1, (4, -1)).unbind(1)
    pairs = {
        "neighbours": (drawn[:, :-1], drawn[:, 1:]),
        "the first pair of a block": (quarters[0], quarters[1]),
        "the second pair of a block": (quarters[2], quarters[3]),
        "the radii of a block": (quarters[0], quarters[2]),
        "the angles of a block": (quarters[1], quarters[3]),
        "samples": (drawn[:-1], drawn[1:]),
        "distant samples": (drawn, normals(3, numbers + 2**32, Purpose.NOISE, shape, "cpu").flatten(1)),
        "purposes": (drawn, normals(3, numbers, Purpose.LATENT_NOISE, shape, "cpu").flatten(1)),
        "seeds": (drawn, normals(4, numbers, Purpose.NOISE, shape, "cpu").flatten(1)),
        "distant seeds": (drawn, normals(3 + 2**32, numbers, Purpose.NOISE, shape, "cpu").flatten(1)),
    }
    for name, (left, right) in pairs.items():
        for change in (torch.clone, torch.square, torch.abs):
            both = torch.stack([change(left).flatten(), change(right).flatten()]).double()
            assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / math.sqrt(both.shape[1]), name
