"""Random number generators, one per item. Results do not depend on batches, workers or processes.

Sampling uses torch CPU generators, which the schedulers of diffusers accept. torch seeds them with 32 bits.
Training draws with `philox`.
"""

import hashlib

import torch


def initial_noise(seed: int) -> torch.Generator:
    """Return the generator of an item's initial noise, `torch.Generator().manual_seed(seed)`.

    A diffusers pipeline with the same generator starts from the same noise.
    """
    return torch.Generator().manual_seed(seed)


def derived(seed: int, purpose: str) -> torch.Generator:
    """Return a generator of an item for one purpose, independent of the initial noise of the item.

    Args:
        seed: Seed of the item.
        purpose: Name of the purpose, such as "step" (noise of the scheduler's steps) or "phase".
    """
    digest = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))
