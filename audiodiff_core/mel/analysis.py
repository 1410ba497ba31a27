"""Analysis of audio slices to mel images.

The image equals, to the pixel, that of the original project and of diffusers' `Mel`: librosa's centred STFT with zero padding,
Slaney filterbank, dB relative to the slice's own maximum. Relative to a track's maximum, slices keep their relative loudness.
"""

from functools import cached_property

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples
from audiodiff_core.mel.config import MelConfig, filterbank
from audiodiff_core.mel.ranges import IMAGE_MAX, Images

MIN_POWER = 1e-10

# Analysis works in portions that stay in a core's cache: frames of this many samples in all, and so many bands, whose triangles span few bins.
CHUNK_SAMPLES = 131_072
BLOCK_BANDS = 16


class Mel:
    """Analysis by one MelConfig. Holds constants only, so one instance serves any number of callers."""

    def __init__(self, config: MelConfig) -> None:
        self.config = config

    @cached_property
    def _window(self) -> npt.NDArray[np.float32]:
        return np.hanning(self.config.n_fft + 1)[:-1].astype(np.float32)

    @cached_property
    def _blocks(self) -> list[tuple[slice, slice, npt.NDArray[np.float32]]]:
        """The filterbank in blocks of neighbouring bands: which bands, which bins they span, their weights (bands, bins)."""
        blocks = []
        for start in range(0, self.config.y_res, BLOCK_BANDS):
            bands = slice(start, start + BLOCK_BANDS)
            weights = filterbank(self.config)[bands]
            used = np.flatnonzero(weights.any(axis=0))
            bins = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
            blocks.append((bands, bins, np.ascontiguousarray(weights[:, bins])))
        return blocks

    def slice_step(self, overlap: float) -> int:
        """Samples between the starts of neighbouring slices that share `overlap` in [0, 1) of their length."""
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap {overlap} is not in [0, 1)")
        return max(1, round(self.config.slice_size * (1 - overlap)))

    def images(self, slices: Samples, reference_db: float | None = None) -> tuple[Images, npt.NDArray[np.float32]]:
        """Slices (batch, n <= slice_size), padded with silence to slice_size -> images (batch, y_res, x_res) and the power in dB that is 255
        in each (batch,): `reference_db`, louder being 255 too, or the slice's own maximum where that is None.

        Relative to its own maximum, a slice of silence is 255 throughout; relative to any reference from top_db - 100 dB on, it is 0 throughout.
        """
        images = np.empty((len(slices), self.config.y_res, self.config.x_res), np.uint8)
        references = np.empty(len(slices), np.float32)
        levels_per_db = np.float32(IMAGE_MAX / self.config.top_db)
        for index, samples in enumerate(slices):
            power = self._mel_power(samples)
            references[index] = 10 * np.log10(power.max()) if reference_db is None else reference_db
            level = np.log(power, out=power)  # in a third of log10's time
            level *= np.float32(10 / np.log(10)) * levels_per_db
            level += np.float32(IMAGE_MAX + 0.5) - references[index] * levels_per_db
            np.copyto(images[index], level.clip(0, IMAGE_MAX + 0.5, out=level), casting="unsafe")
        return images, references

    def peak_db(self, slices: Samples) -> npt.NDArray[np.float32]:
        """Slices as for `images` -> the power of each one's maximum in dB (batch,): at least -100, silence. The largest of a track is its reference."""
        return np.array([10 * np.log10(self._mel_power(samples).max()) for samples in slices], np.float32)

    def is_silent(self, peak_db: float) -> bool:
        """Whether a slice of this peak is complete silence to the original: relative to its own maximum, every pixel rounds to 255."""
        return bool(peak_db <= 10 * np.log10(MIN_POWER) + self.config.top_db / IMAGE_MAX / 2)

    def _mel_power(self, samples: Samples) -> npt.NDArray[np.float32]:
        """A slice's power in each band and frame (y_res, x_res), at least MIN_POWER."""
        import scipy.fft  # takes half a second to import, then half the time of numpy's on float32

        config = self.config
        if samples.ndim != 1 or len(samples) > config.slice_size:
            raise ValueError(
                f"a slice of shape {samples.shape}: one dimension of at most {config.slice_size} samples is taken"
            )
        half = config.n_fft // 2
        padded = np.zeros(config.slice_size + 2 * half, np.float32)
        padded[half : half + len(samples)] = samples
        frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
        mel = np.empty((config.y_res, config.x_res), np.float32)
        step = max(1, CHUNK_SAMPLES // config.n_fft)
        for chunk in (slice(start, start + step) for start in range(0, config.x_res, step)):
            power = np.square(np.abs(scipy.fft.rfft(frames[chunk] * self._window, overwrite_x=True)))
            for bands, bins, weights in self._blocks:
                np.matmul(weights, power[:, bins].T, out=mel[bands, chunk])
        return np.maximum(mel, MIN_POWER, out=mel)

    def power(self, images: Images) -> npt.NDArray[np.float32]:
        """Images (batch, y_res, width) -> mel power relative to the image's reference, in (0, 1]."""
        return np.power(10, (images.astype(np.float64) / IMAGE_MAX - 1) * self.config.top_db / 10).astype(np.float32)
