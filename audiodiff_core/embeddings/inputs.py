"""Checks and batches of encoder inputs, and digests of encoders."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from audiodiff_core.audio import Samples

Embeddings = npt.NDArray[np.float32]

ENCODER_BATCH_SIZE = 16
LONGEST_EMBEDDED_S = 3_600.0
"""Maximum duration of an audio file in seconds. The samples of a file are in memory: 700 MB at 48 kHz."""


def batches(items: Iterable[npt.NDArray[Any]]) -> Iterator[list[npt.NDArray[Any]]]:
    """Group arrays of the same shape into lists of ENCODER_BATCH_SIZE.

    The last list is padded with arrays of zeros. All batches have the same shape, because the shape of a batch can
    change the last bits of its results.
    """
    remaining = iter(items)
    while batch := list(islice(remaining, ENCODER_BATCH_SIZE)):
        yield batch + [np.zeros_like(batch[0])] * (ENCODER_BATCH_SIZE - len(batch))


def check_audios(audios: Sequence[Samples], sample_rate: int, expected: int, name: str) -> None:
    """Check the arguments of `Encoder.encode`.

    Args:
        audios: Samples, which must be finite and of shape (n,).
        sample_rate: Sample rate of `audios`, in Hz.
        expected: Sample rate of the encoder, in Hz.
        name: Name of the encoder in error messages.

    Raises:
        ValueError: If an argument is invalid.
    """
    if sample_rate != expected:
        raise ValueError(f"sample_rate {sample_rate}: must be {expected} Hz for encoder {name}")
    if not len(audios):
        raise ValueError("audios: must contain at least one audio")
    for index, audio in enumerate(audios):
        if audio.ndim != 1 or not len(audio):
            raise ValueError(f"audios[{index}] of shape {audio.shape}: must be mono samples of shape (n,), not empty")
        if not np.isfinite(audio).all():
            raise ValueError(f"audios[{index}]: must not contain NaN or infinite samples")


def encoder_digest(network: nn.Module, settings: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of a network's settings and weights.

    The digest does not depend on the format of the weight files.
    """
    sha256 = hashlib.sha256(settings.encode())
    for key, value in sorted(network.state_dict().items()):
        sha256.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        sha256.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()[:16]
