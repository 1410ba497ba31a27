"""Parameters of mel images and the Slaney filterbank that they define."""

import hashlib
import json
from functools import lru_cache
from importlib.metadata import version
from typing import Self

import numpy as np
import numpy.typing as npt
import pydantic

LARGEST_N_FFT = 32_768

# Slaney's mel scale (Auditory Toolbox, 1998): even steps of frequency up to 1 kHz, 27 even steps of its logarithm for each factor of 6.4 above.
LINEAR_HZ_PER_MEL = 200 / 3
LOG_FROM_HZ = 1_000.0
LOG_PER_MEL = np.log(6.4) / 27


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
        content = json.loads(text)
        return cls.model_validate(
            {key: value for key, value in content.items() if not key.startswith("_")}
            if isinstance(content, dict)
            else content
        )

    def difference(self, other: "MelConfig") -> str:
        """What differs, both values shown: 'hop_length 512 against 1024'; empty where nothing does."""
        mine, theirs = self.model_dump(), other.model_dump()
        return ", ".join(f"{key} {mine[key]} against {theirs[key]}" for key in mine if mine[key] != theirs[key])


def band_edges_hz(config: MelConfig) -> npt.NDArray[np.float64]:
    """(y_res + 2,) frequencies, even on the mel scale from 0 to half the sample rate: band i rises from edge i to i + 1 and falls to i + 2."""
    linear_mels = LOG_FROM_HZ / LINEAR_HZ_PER_MEL
    top = linear_mels + np.log(config.sample_rate / 2 / LOG_FROM_HZ) / LOG_PER_MEL
    mels = np.linspace(0, top, config.y_res + 2)
    return np.where(
        mels < linear_mels, LINEAR_HZ_PER_MEL * mels, LOG_FROM_HZ * np.exp(LOG_PER_MEL * (mels - linear_mels))
    )


@lru_cache(maxsize=8)
def filterbank(config: MelConfig) -> npt.NDArray[np.float32]:
    """Slaney-scale, Slaney-normalised triangles, (y_res, 1 + n_fft // 2): exactly those of `librosa.filters.mel`, whose import takes a second."""
    edges = band_edges_hz(config)[:, np.newaxis]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    bins = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)
    triangles: npt.NDArray[np.float32] = (
        np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clip(0).astype(np.float32)
    )
    triangles *= 2 / (high - low)
    return triangles
