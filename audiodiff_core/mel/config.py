"""Parameters of mel images, and the Slaney filterbank that they define."""

import hashlib
import json
from functools import lru_cache
from importlib.metadata import version
from typing import Self

import numpy as np
import numpy.typing as npt
import pydantic

MAX_N_FFT = 32_768

# Mel scale of Slaney (Auditory Toolbox, 1998): linear up to 1 kHz, and logarithmic above, with 27 mels for each factor
# of 6.4 in frequency.
LINEAR_HZ_PER_MEL = 200 / 3
MIN_LOG_HZ = 1_000.0
LOG_HZ_PER_MEL = np.log(6.4) / 27


class MelConfig(pydantic.BaseModel):
    """Parameters of mel images, with the names of diffusers' `Mel`.

    Data sets and checkpoints store the parameters that they were made with.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    x_res: int = pydantic.Field(256, ge=8, le=16_384, description="image width: frames per slice")
    y_res: int = pydantic.Field(256, ge=8, le=1_024, description="image height: mel bands")
    sample_rate: int = pydantic.Field(22_050, ge=4_000, le=192_000, description="sample rate in Hz")
    n_fft: int = pydantic.Field(2_048, ge=64, le=MAX_N_FFT, description="STFT window in samples")
    hop_length: int = pydantic.Field(512, ge=16, le=16_384, description="samples between frames")
    top_db: int = pydantic.Field(80, ge=10, le=200, description="dynamic range of the image in dB")
    n_iter: int = pydantic.Field(32, ge=1, le=1_000, description="Griffin-Lim iterations")

    @property
    def slice_size(self) -> int:
        """Number of samples in a slice. A centered STFT of this many samples has exactly x_res frames."""
        return self.x_res * self.hop_length - 1

    @property
    def slice_duration_s(self) -> float:
        """Duration of a slice in seconds."""
        return self.slice_size / self.sample_rate

    @property
    def audio_size(self) -> int:
        """Number of samples that a vocoder makes from an image. A slice has hop_length - 1 more samples."""
        return (self.x_res - 1) * self.hop_length

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the parameters as JSON with sorted keys."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the content of a `mel_config.json` that diffusers' `Mel.from_pretrained` can read."""
        return (
            json.dumps(
                {"_class_name": "Mel", "_diffusers_version": version("diffusers"), **self.model_dump()},
                indent=2,
                sort_keys=True,
            )
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the content of a `mel_config.json`. Keys that begin with an underscore are ignored.

        Raises:
            ValueError: If `text` is not JSON, or has unknown keys or invalid values.
        """
        content = json.loads(text)
        return cls.model_validate(
            {key: value for key, value in content.items() if not key.startswith("_")}
            if isinstance(content, dict)
            else content
        )

    def difference(self, other: "MelConfig") -> str:
        """List the parameters that differ, as in "hop_length 512 against 1024", or return an empty text."""
        mine, theirs = self.model_dump(), other.model_dump()
        return ", ".join(f"{key} {mine[key]} against {theirs[key]}" for key in mine if mine[key] != theirs[key])


def band_edges_hz(config: MelConfig) -> npt.NDArray[np.float64]:
    """Compute the edges of the bands.

    The edges are evenly spaced on the mel scale, from 0 Hz to half the sample rate. Band i rises from edge i to edge
    i + 1, and falls from edge i + 1 to edge i + 2.

    Returns:
        Frequencies in Hz, of shape (y_res + 2,). The array is cached and read-only.
    """
    return _band_edges_hz(config.sample_rate, config.y_res)


def filterbank(config: MelConfig) -> npt.NDArray[np.float32]:
    """Compute the triangular filters on Slaney's mel scale, with Slaney's normalization.

    The filters are equal to those of `librosa.filters.mel`, which is not used because its import takes a second.

    Returns:
        Weights of shape (y_res, 1 + n_fft // 2). The array is cached and read-only.
    """
    return _filterbank(config.sample_rate, config.n_fft, config.y_res)


@lru_cache(maxsize=8)
def _band_edges_hz(sample_rate: int, bands: int) -> npt.NDArray[np.float64]:
    linear_mels = MIN_LOG_HZ / LINEAR_HZ_PER_MEL
    top = linear_mels + np.log(sample_rate / 2 / MIN_LOG_HZ) / LOG_HZ_PER_MEL
    mels = np.linspace(0, top, bands + 2)
    edges = np.where(
        mels < linear_mels, LINEAR_HZ_PER_MEL * mels, MIN_LOG_HZ * np.exp(LOG_HZ_PER_MEL * (mels - linear_mels))
    )
    edges.flags.writeable = False
    return edges


@lru_cache(maxsize=8)
def _filterbank(sample_rate: int, n_fft: int, bands: int) -> npt.NDArray[np.float32]:
    edges = _band_edges_hz(sample_rate, bands)[:, np.newaxis]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    bins = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    triangles: npt.NDArray[np.float32] = (
        np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clip(0).astype(np.float32)
    )
    triangles *= 2 / (high - low)
    triangles.flags.writeable = False
    return triangles
