"""Samples of a source that synthesized audio keeps, where only a part of the source is regenerated.

A join is a transition between kept and regenerated samples. At each join, a crossfade leads from the vocoder's audio to
the source, or back. The crossfade lies in the kept samples next to the join, so that all regenerated samples are the
vocoder's. A kept span that is shorter than its crossfades is divided evenly among them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples
from audiodiff_core.audio.crossfade import crossfade
from audiodiff_core.mel import MelConfig

SampleMask = npt.NDArray[np.bool_]

FADE_S = 0.04
"""Longest duration in seconds of the crossfade at a join."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Samples that the audio of an image keeps.

    Attributes:
        samples: float32 audio (n,) of the source, at the scale of the image: mel power 1 at level 255. Audio has the
            scale of its image after division by 10 ** (r / 20), where r is the reference of the image in dB.
        mask: bool (n,), True where the audio of the image keeps the sample.

    Raises:
        ValueError: If the arrays have another type or different shapes, or if a kept sample is not finite.
    """

    samples: Samples
    mask: SampleMask

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise ValueError(
                f"kept samples of shape {self.samples.shape} and type {self.samples.dtype}: pass float32 (n,)"
            )
        if self.mask.shape != self.samples.shape or self.mask.dtype != np.bool_:
            raise ValueError(
                f"mask of shape {self.mask.shape} and type {self.mask.dtype}: pass bool ({len(self.samples)},)"
            )
        if not np.isfinite(self.samples[self.mask]).all():
            raise ValueError("kept samples hold NaN or infinity")


def kept_samples(columns_kept: npt.NDArray[np.bool_], config: MelConfig, length: int) -> SampleMask:
    """Compute the mask of the samples that whole image columns stand for.

    Column c is the frame centered at sample c * hop_length. It stands for the samples from c * hop_length up to, but
    not including, (c + 1) * hop_length.

    Args:
        columns_kept: bool (width,), True for each kept column.
        config: The mel configuration.
        length: Number of samples of the audio, at most width * hop_length.

    Returns:
        A mask (length,), True where the sample is kept.

    Raises:
        ValueError: If the audio is longer than the columns.
    """
    stated = len(columns_kept) * config.hop_length
    if length > stated:
        raise ValueError(f"length {length}: {len(columns_kept)} columns stand for {stated} samples")
    return np.repeat(columns_kept, config.hop_length)[:length]


def checked_kept(kept: Sequence[Kept | None] | None, count: int, length: int) -> Sequence[Kept | None]:
    """Check the kept samples of a call.

    Args:
        kept: Kept samples or None per image. None if no image keeps samples.
        count: Number of images.
        length: Samples of the audio of an image.

    Returns:
        Kept samples per image. An entry is None if the image keeps no sample.

    Raises:
        ValueError: If the number of entries or the number of samples differs.
    """
    if kept is None:
        return [None] * count
    if len(kept) != count:
        raise ValueError(f"{count} images with {len(kept)} entries in kept: pass Kept or None per image")
    for item in kept:
        if item is not None and len(item.samples) != length:
            raise ValueError(f"kept of {len(item.samples)} samples: the audio of the image has {length}")
    return [item if item is not None and item.mask.any() else None for item in kept]


def splice(audio: Samples, kept: Kept, fade: int, circular: bool = False) -> Samples:
    """Put kept samples into audio, with a crossfade at each join.

    Kept samples that are at least `fade` samples away from every join equal the source.

    Args:
        audio: float32 audio (n,), at the scale of the kept samples.
        kept: The kept samples (n,).
        fade: Largest number of samples of a crossfade.
        circular: Whether the audio is one period of a loop, so that a join can lie at its end.

    Returns:
        float32 audio (n,).
    """
    spliced = np.where(kept.mask, kept.samples, audio)
    for places, into_kept in _fades(kept.mask, fade, circular):
        source, made = kept.samples[places], audio[places]
        spliced[places] = crossfade(made, source) if into_kept else crossfade(source, made)
    return spliced


def kept_weights(mask: SampleMask, fade: int, circular: bool = False) -> Samples:
    """Compute weights of kept samples that rise gradually from each join.

    Args:
        mask: bool (n,), True where a sample is kept.
        fade: Largest number of samples of a rise.
        circular: Whether the audio is one period of a loop, so that a join can lie at its end.

    Returns:
        float32 weights (n,) in [0, 1]: 0 where nothing is kept, a sine between 0 and 1 where `splice` crossfades, and 1
        where the result of `splice` equals the source.
    """
    weights = mask.astype(np.float32)
    for places, into_kept in _fades(mask, fade, circular):
        rise = np.sin((np.arange(len(places)) + 0.5) / max(1, len(places)) * np.pi / 2)
        weights[places] = rise if into_kept else rise[::-1]
    return weights


def _fades(mask: SampleMask, fade: int, circular: bool) -> Iterator[tuple[npt.NDArray[np.int64], bool]]:
    """Yield the sample indices of each crossfade, in order of time, and whether it leads into a kept span."""
    # A circular mask is rotated to begin with a regenerated sample, so that no kept span crosses its end.
    start = int(mask.argmin()) if circular else 0
    edges = np.flatnonzero(np.diff(np.roll(mask, -start), prepend=False, append=False))
    for first, end in edges.reshape(-1, 2).tolist():
        begins = first > 0
        ends = end < len(mask) or (circular and begins)
        places = (start + np.arange(first, end)) % len(mask)
        length = min(fade, len(places) // max(1, begins + ends))
        if begins:
            yield places[:length], True
        if ends:
            yield places[len(places) - length :], False
