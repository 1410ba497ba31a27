"""Inputs of encoders: checks and batches of one fixed shape; digests of encoders."""

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


def batches(items: Iterable[npt.NDArray[Any]]) -> Iterator[list[npt.NDArray[Any]]]:
    """The items in lists of BATCH_SIZE, the last filled up with zeros: the shape of a batch moves the last bits of all in it."""
    waiting = iter(items)
    while batch := list(islice(waiting, ENCODER_BATCH_SIZE)):
        yield batch + [np.zeros_like(batch[0])] * (ENCODER_BATCH_SIZE - len(batch))


def check_audios(audios: Sequence[Samples], sample_rate: int, expected: int, name: str) -> None:
    if sample_rate != expected:
        raise ValueError(f"sample_rate {sample_rate}: encoder {name} takes audio at {expected} Hz")
    if not len(audios):
        raise ValueError("audios: none are given")
    for index, audio in enumerate(audios):
        if audio.ndim != 1 or not len(audio):
            raise ValueError(f"audios[{index}] of shape {audio.shape}: mono samples (n,) are needed")
        if not np.isfinite(audio).all():
            raise ValueError(f"audios[{index}] holds NaN or infinite samples")


def encoder_digest(network: nn.Module, settings: str) -> str:
    """The first 16 hex digits of the SHA-256 of settings and weights, whatever file they came from."""
    total = hashlib.sha256(settings.encode())
    for key, value in sorted(network.state_dict().items()):
        total.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()[:16]
