"""Circular time stretching: change the length of a loop at constant pitch and keep it seamless.

The algorithm is a phase vocoder on a circle. Frames are read at equal distances around the source loop and written at
equal distances around the stretched loop. From one written frame to the next, the phase of each spectral peak advances
as much as in the source over the same distance. The bins around a peak are rotated by the same angle as the peak
(Laroche & Dolson, "Improved phase vocoder time-scale modification of audio", 1999).

After one turn around the loop, the phase of a peak can differ from the phase at the start by up to half a period. This
difference is spread over all frames, so that the last frame continues into the first.
"""

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples

WINDOW_S = 0.093
FRAMES_PER_WINDOW = 4
MAX_STRETCH = 2.0
"""Largest factor by which a loop is lengthened or shortened. Larger factors have audible artifacts."""

Phases = npt.NDArray[np.float64]


def stretch_circular(loop: Samples, length: int, sample_rate: int) -> Samples:
    """Stretch a loop to `length` samples at constant pitch.

    Args:
        loop: Mono samples of shape (n,), which wrap around.
        length: Number of samples of the result, from n / 2 to 2 * n.
        sample_rate: Sample rate in Hz.

    Returns:
        Samples of shape (length,), which wrap around. `loop` itself if `length` is n.

    Raises:
        ValueError: If `length` is out of range.
    """
    if not len(loop) / MAX_STRETCH <= length <= len(loop) * MAX_STRETCH:
        raise ValueError(
            f"a loop of {len(loop)} samples cannot be stretched to {length}: must be half to twice the length"
        )
    if length == len(loop):
        return loop
    size = 1 << round(np.log2(WINDOW_S * sample_rate))
    window = np.hanning(size + 1)[:-1]
    count = max(FRAMES_PER_WINDOW, -(-length * FRAMES_PER_WINDOW // size))
    starts = np.round(np.arange(count) * length / count).astype(np.int64)
    hops = np.diff(starts, prepend=starts[-1] - length)
    source_starts = np.round(starts * len(loop) / length).astype(np.int64)
    spectra = _spectra(loop, source_starts, window)
    advances = np.angle(spectra) - np.angle(_spectra(loop, source_starts - hops, window))
    frames = np.fft.irfft(spectra * np.exp(1j * _rotations(spectra, advances)), size) * window
    stretched, weight = np.zeros(length), np.zeros(length)
    for start, frame in zip(starts, frames, strict=True):
        samples = (start + np.arange(size)) % length
        np.add.at(stretched, samples, frame)
        np.add.at(weight, samples, np.square(window))
    return (stretched / weight).astype(np.float32)


def _spectra(
    loop: Samples, starts: npt.NDArray[np.int64], window: npt.NDArray[np.float64]
) -> npt.NDArray[np.complex128]:
    """Spectra (frames, 1 + len(window) // 2) of the windowed frames that begin at `starts`."""
    return np.fft.rfft(loop[(starts[:, np.newaxis] + np.arange(len(window))) % len(loop)] * window)


def _rotations(spectra: npt.NDArray[np.complex128], advances: Phases) -> Phases:
    """Phase in radians to add to each bin of each frame (frames, bins).

    `advances` (frames, bins) is the phase that a bin gains in the source over the hop before each written frame.
    """
    count = len(spectra)
    peaks = [_nearest_peak(np.abs(spectrum)) for spectrum in spectra]
    phases = np.angle(spectra)
    rotations = np.zeros((count + 1, phases.shape[1]))
    for step in range(1, count + 1):
        frame = step % count
        rotations[step] = (phases[step - 1] + rotations[step - 1] + advances[frame] - phases[frame])[peaks[frame]]
    mismatch = np.angle(np.exp(1j * rotations[count]))
    return np.stack([rotations[frame] - frame / count * mismatch[peaks[frame]] for frame in range(count)])


def _nearest_peak(magnitude: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Index of the peak nearest to each bin. A peak exceeds its two neighbors on either side."""
    padded = np.pad(magnitude, 2, constant_values=-1)
    neighbors = np.stack([padded[0:-4], padded[1:-3], padded[3:-1], padded[4:]])
    peaks = np.flatnonzero(magnitude > neighbors.max(axis=0))
    bins = np.arange(len(magnitude))
    if not len(peaks):
        return bins
    nearest = np.searchsorted((peaks[1:] + peaks[:-1]) / 2, bins)
    nearest_peaks: npt.NDArray[np.int64] = peaks[nearest]
    return nearest_peaks
