"""Another length for a loop at the same pitch, so that it is still a loop: a phase vocoder on a circle.

Frames are read at even distances around the given loop and written at even distances around the new one. Each peak of the spectrum
advances its phase by as much as the audio's own does over the same distance, and takes the bins around it along (Laroche & Dolson,
"Improved phase vocoder time-scale modification of audio", 1999). After one turn a peak's phase need not be that of the start: the
remainder, less than half a period, is spread over the turn. So the last frame leads into the first like any other into its next.
"""

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples

WINDOW_S = 0.093
FRAMES_PER_WINDOW = 4
FURTHEST = 2.0
"""Shorter or longer than by this factor, music sounds torn."""

Phases = npt.NDArray[np.float64]


def stretch_circular(loop: Samples, length: int, sample_rate: int) -> Samples:
    """The loop (n,) in `length` samples, (length,), pitch kept; both wrap. The same length gives the same samples.

    Raises ValueError where the length is not within a factor of 2.
    """
    if not len(loop) / FURTHEST <= length <= len(loop) * FURTHEST:
        raise ValueError(
            f"a loop of {len(loop)} samples cannot be stretched to {length}: half to twice the length can be"
        )
    if length == len(loop):
        return loop
    size = 1 << round(np.log2(WINDOW_S * sample_rate))
    window = np.hanning(size + 1)[:-1]
    count = max(FRAMES_PER_WINDOW, -(-length * FRAMES_PER_WINDOW // size))
    places = np.round(np.arange(count) * length / count).astype(np.int64)
    hops = np.diff(places, prepend=places[-1] - length)
    sources = np.round(places * len(loop) / length).astype(np.int64)
    spectra = _spectra(loop, sources, window)
    advances = np.angle(spectra) - np.angle(_spectra(loop, sources - hops, window))
    frames = np.fft.irfft(spectra * np.exp(1j * _rotations(spectra, advances)), size) * window
    out, weight = np.zeros(length), np.zeros(length)
    for place, frame in zip(places, frames, strict=True):
        where = (place + np.arange(size)) % length
        np.add.at(out, where, frame)
        np.add.at(weight, where, np.square(window))
    return (out / weight).astype(np.float32)


def _spectra(
    loop: Samples, places: npt.NDArray[np.int64], window: npt.NDArray[np.float64]
) -> npt.NDArray[np.complex128]:
    """(places, 1 + window // 2) of the frames that begin at `places`, around the loop."""
    return np.fft.rfft(loop[(places[:, np.newaxis] + np.arange(len(window))) % len(loop)] * window)


def _rotations(spectra: npt.NDArray[np.complex128], advances: Phases) -> Phases:
    """By how much each frame's bins are turned, (frames, bins); advances: the phase that each bin gains in the audio from one place to the next."""
    count = len(spectra)
    owners = [_nearest_peak(np.abs(spectrum)) for spectrum in spectra]
    phases = np.angle(spectra)
    turned = np.zeros((count + 1, phases.shape[1]))
    for frame in range(1, count + 1):
        here = frame % count
        turned[frame] = (phases[frame - 1] + turned[frame - 1] + advances[here] - phases[here])[owners[here]]
    remainder = np.angle(np.exp(1j * turned[count]))
    return np.stack([turned[frame] - frame / count * remainder[owners[frame]] for frame in range(count)])


def _nearest_peak(magnitude: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """For each bin the peak (larger than its two neighbours on either side) that is nearest to it."""
    padded = np.pad(magnitude, 2, constant_values=-1)
    around = np.stack([padded[0:-4], padded[1:-3], padded[3:-1], padded[4:]])
    peaks = np.flatnonzero(magnitude > around.max(axis=0))
    bins = np.arange(len(magnitude))
    if not len(peaks):
        return bins
    right = np.searchsorted((peaks[1:] + peaks[:-1]) / 2, bins)
    nearest: npt.NDArray[np.int64] = peaks[right]
    return nearest
