"""Philox4x32-10, a counter-based generator of random numbers, in integer operations of torch.

See Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011. A block of four 32-bit words is a function of a
key and a counter:

  key      low and high word of the seed
  counter  number of the block, purpose, low and high word of the sample number

The draws of a sample therefore do not depend on its batch, on the worker or on the device. A GPU draws its own noise
without waiting for the host. The words are the same on all devices. Normal values differ between devices by rounding.

Words lie in int64 tensors, which all devices support. The product of two words wraps modulo 2^64 and keeps all bits.
"""

import math
from enum import IntEnum

import torch

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_INCREMENTS = 0x9E3779B9, 0xBB67AE85
WORD = 0xFFFF_FFFF

CPU_CHUNK, GPU_CHUNK = 1 << 17, 1 << 20
"""Blocks that are computed together: on a CPU as many as its cache holds, on a GPU about 60 MiB."""

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Four int64 tensors of 32-bit words."""


class Purpose(IntEnum):
    """Purpose of a draw. Draws of one sample for different purposes are independent."""

    NOISE = 0
    LATENT_NOISE = 1
    SCALARS = 2


def words(seed: int, numbers: torch.Tensor, purpose: Purpose, count: int, device: torch.device | str) -> torch.Tensor:
    """Draw random 32-bit words for each sample.

    Args:
        seed: Seed in [0, 2^63).
        numbers: Sample numbers (batch,), int64, not negative.
        purpose: Purpose of the draw.
        count: Words per sample.
        device: Device that draws the words.

    Returns:
        Words (batch, count), int64 in [0, 2^32). The first words do not depend on `count`.
    """
    numbers = numbers.to(device, non_blocking=True)
    return torch.stack(_blocks(seed, numbers, purpose, 0, -(-count // 4)), dim=2).flatten(1)[:, :count]


def normals(
    seed: int, numbers: torch.Tensor, purpose: Purpose, shape: tuple[int, ...], device: torch.device | str
) -> torch.Tensor:
    """Draw standard normal values for each sample.

    Args:
        seed: Seed in [0, 2^63).
        numbers: Sample numbers (batch,), int64, not negative.
        purpose: Purpose of the draw.
        shape: Shape of the values of one sample.
        device: Device that draws the values.

    Returns:
        Values (batch, *shape), float32. Each block gives four values, which lie a quarter of the sample apart.
    """
    numbers = numbers.to(device, non_blocking=True)
    count = math.prod(shape)
    blocks = -(-count // 4)
    values = torch.empty(len(numbers), 4, blocks, device=device)
    step = max(1, (CPU_CHUNK if values.device.type == "cpu" else GPU_CHUNK) // len(numbers))
    for first in range(0, blocks, step):
        last = min(first + step, blocks)
        word0, word1, word2, word3 = _blocks(seed, numbers, purpose, first, last)
        values[:, 0, first:last], values[:, 1, first:last] = box_muller(word0, word1)
        values[:, 2, first:last], values[:, 3, first:last] = box_muller(word2, word3)
    return values.flatten(1)[:, :count].reshape(len(numbers), *shape)


def box_muller(radius: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert pairs of words to pairs of independent standard normal values.

    Args:
        radius: Words of the radius. A word w stands for the probability (w + 1) / 2^32, which is never 0.
        angle: Words of the angle, of the same shape. A word w stands for w / 2^32 of a turn.

    Returns:
        Two float32 tensors of values in [-6.7, 6.7].
    """
    length = radius.float().add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    turn = angle.float().mul_(2 * math.pi / 2.0**32)
    return turn.cos().mul_(length), turn.sin_().mul_(length)


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Compute blocks of random words.

    Args:
        counter: The counters, in shapes that broadcast to one shape.
        key: The key, two 32-bit words.

    Returns:
        The blocks, each word in the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = key
    for index in range(ROUNDS):
        if index == 0:
            product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        else:
            product0, product1 = c0.mul_(MULTIPLIERS[0]), c2.mul_(MULTIPLIERS[1])
        if index < 4:  # while the words broadcast
            c0, c2 = c1 ^ (product1 >> 32), c3 ^ (product0 >> 32)
        else:
            c0, c2 = c1.bitwise_xor_(product1 >> 32), c3.bitwise_xor_(product0 >> 32)
        c0.bitwise_xor_(key0).bitwise_and_(WORD)
        c2.bitwise_xor_(key1).bitwise_and_(WORD)
        # The upper halves of these words do not reach a product: the masks of the next round remove them.
        c1, c3 = product1, product0
        key0, key1 = (key0 + KEY_INCREMENTS[0]) & WORD, (key1 + KEY_INCREMENTS[1]) & WORD
    return c0, c1.bitwise_and_(WORD), c2, c3.bitwise_and_(WORD)


def _blocks(seed: int, numbers: torch.Tensor, purpose: Purpose, first: int, last: int) -> Words:
    """Return the blocks `first` to `last` of each sample, in the shape (batch, last - first)."""
    assert 0 <= seed < 1 << 63, f"seed {seed} is out of range"
    block = torch.arange(first, last, device=numbers.device)
    number = numbers.unsqueeze(1)
    counter = block, torch.full_like(number, purpose), number & WORD, (number >> 32) & WORD
    return philox4x32(counter, (seed & WORD, seed >> 32))
