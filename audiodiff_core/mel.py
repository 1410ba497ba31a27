"""Samples <-> mel images <-> the values that networks see.

Glossary, with one range each:
  slice   float32 (slice_size,)          samples, nominally in [-1, 1]
  image   uint8   (y_res, x_res)         log-mel power, row 0 = lowest band, 255 = the reference (the slice's maximum or a given one), 0 = `top_db` below
  model   float32 (1, y_res, x_res)      the image in [-1, 1]; `to_model` and `to_image` are the only places that convert

The image is, to the pixel, that of the original project and of diffusers' `Mel`: librosa's centred STFT with zero padding, Slaney
filterbank, dB relative to the slice's own maximum. Relative to a track's maximum instead, its slices keep their loudness among each other.
"""

import hashlib
import json
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pydantic

from audiodiff_core.audio import Samples

Images = npt.NDArray[np.uint8]

MIN_POWER = 1e-10
IMAGE_MAX = 255
LARGEST_N_FFT = 32_768

# Slaney's mel scale (Auditory Toolbox, 1998): even steps of frequency up to 1 kHz, 27 even steps of its logarithm for each factor of 6.4 above.
LINEAR_HZ_PER_MEL = 200 / 3
LOG_FROM_HZ = 1_000.0
LOG_PER_MEL = np.log(6.4) / 27

# Analysis works in portions that stay in a core's cache: frames of this many samples in all, and so many bands, whose triangles span few bins.
CHUNK_SAMPLES = 131_072
BLOCK_BANDS = 16


class MelConfig(pydantic.BaseModel):
    """Everything that defines a mel image: diffusers' seven keys. Stated to prepare, then carried with data and checkpoints."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    x_res: int = pydantic.Field(256, ge=8, le=16_384, description="image width: frames per slice")
    y_res: int = pydantic.Field(256, ge=8, le=1_024, description="image height: mel bands")
    sample_rate: int = pydantic.Field(22_050, ge=4_000, le=192_000, description="sample rate in Hz")
    n_fft: int = pydantic.Field(2_048, ge=64, le=LARGEST_N_FFT, description="STFT window in samples")
    hop_length: int = pydantic.Field(512, ge=16, le=16_384, description="samples between frames")
    top_db: int = pydantic.Field(80, ge=10, le=200, description="dynamic range of the image in dB")
    n_iter: int = pydantic.Field(32, ge=1, le=1_000, description="Griffin-Lim iterations")

    @property
    def slice_size(self) -> int:
        """Samples per slice. The -1 makes a centred STFT give exactly x_res frames."""
        return self.x_res * self.hop_length - 1

    @property
    def slice_duration_s(self) -> float:
        return self.slice_size / self.sample_rate

    @property
    def audio_size(self) -> int:
        """Samples that an image of full width becomes: hop_length - 1 fewer than a slice."""
        return (self.x_res - 1) * self.hop_length

    @property
    def digest(self) -> str:
        """Names this configuration: the first 16 hex digits of the SHA-256 of its canonical JSON."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The text of `mel_config.json`, as diffusers' `Mel.from_pretrained` reads it."""
        return json.dumps({"_class_name": "Mel", "_diffusers_version": version("diffusers"), **self.model_dump()}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        content = json.loads(text)
        return cls.model_validate({key: value for key, value in content.items() if not key.startswith("_")} if isinstance(content, dict) else content)

    def difference(self, other: "MelConfig") -> str:
        """What differs, both values shown: 'hop_length 512 against 1024'; empty where nothing does."""
        mine, theirs = self.model_dump(), other.model_dump()
        return ", ".join(f"{key} {mine[key]} against {theirs[key]}" for key in mine if mine[key] != theirs[key])


def band_edges_hz(config: MelConfig) -> npt.NDArray[np.float64]:
    """(y_res + 2,) frequencies, even on the mel scale from 0 to half the sample rate: band i rises from edge i to i + 1 and falls to i + 2."""
    linear_mels = LOG_FROM_HZ / LINEAR_HZ_PER_MEL
    top = linear_mels + np.log(config.sample_rate / 2 / LOG_FROM_HZ) / LOG_PER_MEL
    mels = np.linspace(0, top, config.y_res + 2)
    return np.where(mels < linear_mels, LINEAR_HZ_PER_MEL * mels, LOG_FROM_HZ * np.exp(LOG_PER_MEL * (mels - linear_mels)))


@lru_cache(maxsize=8)
def filterbank(config: MelConfig) -> npt.NDArray[np.float32]:
    """Slaney-scale, Slaney-normalised triangles, (y_res, 1 + n_fft // 2): exactly those of `librosa.filters.mel`, whose import takes a second."""
    edges = band_edges_hz(config)[:, np.newaxis]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    bins = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)
    triangles: npt.NDArray[np.float32] = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clip(0).astype(np.float32)
    triangles *= 2 / (high - low)
    return triangles


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
            raise ValueError(f"a slice of shape {samples.shape}: one dimension of at most {config.slice_size} samples is taken")
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


def to_model(images: Any) -> Any:
    """uint8 images in [0, 255], a numpy array or a tensor -> float32 in [-1, 1], the same shape and kind."""
    return images / np.float32(IMAGE_MAX) * 2 - 1


def to_image(values: npt.NDArray[np.float32]) -> Images:
    """float32 in [-1, 1] (beyond is clipped) -> uint8 in [0, 255], rounded, the same shape."""
    return ((values / 2 + np.float32(0.5)).clip(0, 1) * IMAGE_MAX).round().astype(np.uint8)
