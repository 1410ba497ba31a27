"""Conversion of audio slices to mel images.

Images are equal, pixel by pixel, to those of the original project and of diffusers' `Mel`: librosa's centered STFT with
zero padding, the Slaney filterbank, and dB relative to the maximum of the slice. With the maximum of a track as the
reference instead, the slices of the track keep their relative loudness.
"""

from functools import cached_property

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples
from audiodiff_core.mel.config import MelConfig, filterbank
from audiodiff_core.mel.ranges import IMAGE_MAX, Images

MIN_POWER = 1e-10
"""Minimum mel power: -100 dB."""

# The analysis works in parts that fit in the cache of a core. A chunk has frames of CHUNK_SAMPLES samples in total. A
# block has BLOCK_BANDS adjacent bands, whose triangles span few frequency bins.
CHUNK_SAMPLES = 131_072
BLOCK_BANDS = 16


class Mel:
    """Converter between audio slices and mel images. Threads can share an instance."""

    def __init__(self, config: MelConfig) -> None:
        self.config = config

    @cached_property
    def _window(self) -> npt.NDArray[np.float32]:
        return np.hanning(self.config.n_fft + 1)[:-1].astype(np.float32)

    @cached_property
    def _blocks(self) -> list[tuple[slice, slice, npt.NDArray[np.float32]]]:
        """Blocks of the filterbank.

        A block is a range of bands, the range of their frequency bins, and weights of shape (bands, bins).
        """
        blocks = []
        for start in range(0, self.config.y_res, BLOCK_BANDS):
            bands = slice(start, start + BLOCK_BANDS)
            weights = filterbank(self.config)[bands]
            used_bins = np.flatnonzero(weights.any(axis=0))
            bins = slice(used_bins[0], used_bins[-1] + 1) if len(used_bins) else slice(0, 0)
            blocks.append((bands, bins, np.ascontiguousarray(weights[:, bins])))
        return blocks

    @cached_property
    def power_table(self) -> npt.NDArray[np.float32]:
        """Mel power of each level of an image, relative to the reference of the image. Read-only, of shape (256,)."""
        table = np.power(10, (np.arange(IMAGE_MAX + 1) / IMAGE_MAX - 1) * self.config.top_db / 10).astype(np.float32)
        table.flags.writeable = False
        return table

    def slice_step(self, overlap: float) -> int:
        """Return the distance between the starts of consecutive slices.

        Args:
            overlap: Fraction of a slice that the next slice repeats, in [0, 1).

        Returns:
            The distance in samples, at least 1.

        Raises:
            ValueError: If `overlap` is out of range.
        """
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap {overlap}: must be at least 0 and less than 1")
        return max(1, round(self.config.slice_size * (1 - overlap)))

    def images(self, slices: Samples, reference_db: float | None = None) -> tuple[Images, npt.NDArray[np.float32]]:
        """Convert slices to mel images.

        Every pixel of a silent slice is 255 relative to the maximum of the slice, and 0 relative to a reference of at
        least `top_db` - 100 dB.

        Args:
            slices: Samples of shape (batch, n) with n <= slice_size. Slices are padded with silence to slice_size.
            reference_db: Power in dB at which pixels have the value 255. Louder pixels are clipped. None uses the
                maximum of each slice.

        Returns:
            The images, of shape (batch, y_res, x_res), and the reference of each image in dB, of shape (batch,).
        """
        images = np.empty((len(slices), self.config.y_res, self.config.x_res), np.uint8)
        references = np.empty(len(slices), np.float32)
        levels_per_db = np.float32(IMAGE_MAX / self.config.top_db)
        for index, samples in enumerate(slices):
            power = self._mel_power(samples)
            references[index] = 10 * np.log10(power.max()) if reference_db is None else reference_db
            level = np.log(power, out=power)  # takes a third of the time of log10
            level *= np.float32(10 / np.log(10)) * levels_per_db
            level += np.float32(IMAGE_MAX + 0.5) - references[index] * levels_per_db
            np.copyto(images[index], level.clip(0, IMAGE_MAX + 0.5, out=level), casting="unsafe")
        return images, references

    def peak_db(self, slices: Samples) -> npt.NDArray[np.float32]:
        """Compute the maximum mel power of each slice.

        The maximum over the slices of a track is the reference of the track.

        Args:
            slices: Samples of shape (batch, n) with n <= slice_size.

        Returns:
            Power in dB, of shape (batch,). The minimum is -100 dB, for silence.
        """
        return np.array([10 * np.log10(self._mel_power(samples).max()) for samples in slices], np.float32)

    def is_silent(self, peak_db: float) -> bool:
        """Return True if a slice with this `peak_db` is silent.

        Relative to the maximum of a silent slice, all its pixels round to 255. The original project skips such slices.
        """
        return bool(peak_db <= 10 * np.log10(MIN_POWER) + self.config.top_db / IMAGE_MAX / 2)

    def _mel_power(self, samples: Samples) -> npt.NDArray[np.float32]:
        """Compute the power of a slice by band and frame, of shape (y_res, x_res), at least MIN_POWER."""
        import scipy.fft  # twice as fast as numpy.fft on float32; imported here because the import is slow

        config = self.config
        if samples.ndim != 1 or len(samples) > config.slice_size:
            raise ValueError(
                f"slice of shape {samples.shape}: must have one dimension and at most {config.slice_size} samples"
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
        """Convert images to mel power relative to their reference.

        Args:
            images: uint8 pixels of shape (batch, y_res, width).

        Returns:
            Power in (0, 1], of the same shape.
        """
        return self.power_table[images]
