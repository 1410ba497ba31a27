"""Random streams that belong to an item, never to a batch, a worker or a process.

Sampling uses torch's CPU generators, because diffusers' schedulers take them; torch seeds them with 32 bits, which bounds `SEEDS`.
Training uses Philox, whose 128-bit key holds (seed, sample number) as they are, so that no two samples share a stream.
"""

import hashlib

import numpy as np
import torch

SEEDS = range(2**32)


def initial_noise(seed: int) -> torch.Generator:
    """The stream of an item's first noise: `torch.Generator().manual_seed(seed)`, so that diffusers' pipelines can be given the same."""
    return torch.Generator().manual_seed(seed)


def derived(seed: int, purpose: str) -> torch.Generator:
    """Another stream of the same item ('step' noise, 'phase'), independent of its initial noise."""
    digest = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def training_sample(seed: int, number: int) -> np.random.Generator:
    """The stream of one training sample, counted through all epochs: its timestep first, then its noise."""
    return np.random.Generator(np.random.Philox(key=[seed, number]))
