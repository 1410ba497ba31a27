"""`Mel` of the `audiodiffusion` package, which loads audio and converts it to and from mel images.

New code uses `audiodiff_core.mel.Mel`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import numpy.typing as npt
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image

from audiodiff_core.audio import LONGEST_DECODED_S
from audiodiff_core.mel import IMAGE_MAX, MelConfig
from audiodiff_core.vocoder import GriffinLim

DEFAULTS = MelConfig()


class Mel(ConfigMixin, SchedulerMixin):  # type: ignore[misc]  # diffusers has no types
    """Converter between audio and mel images.

    Images are equal to the images of `audiodiffusion` and of the `Mel` class in diffusers: librosa computes the mel
    spectrogram, and the levels of a slice are relative to its own maximum. Audio is made by `GriffinLim`, with the same
    phases for the same image. The phases of `audiodiffusion` were random.

    Args:
        x_res: Image width in frames.
        y_res: Image height in mel bands.
        sample_rate: Sample rate in Hz.
        n_fft: FFT window length in samples.
        hop_length: Distance between frames in samples.
        top_db: Dynamic range in dB. Level 255 is the maximum of a slice, and level 0 is `top_db` dB lower.
        n_iter: Number of Griffin-Lim iterations.
    """

    config_name = "mel_config.json"

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers has no types
    def __init__(
        self,
        x_res: int = DEFAULTS.x_res,
        y_res: int = DEFAULTS.y_res,
        sample_rate: int = DEFAULTS.sample_rate,
        n_fft: int = DEFAULTS.n_fft,
        hop_length: int = DEFAULTS.hop_length,
        top_db: int = DEFAULTS.top_db,
        n_iter: int = DEFAULTS.n_iter,
    ) -> None:
        self.sr, self.n_fft, self.hop_length, self.top_db, self.n_iter = sample_rate, n_fft, hop_length, top_db, n_iter
        self.set_resolution(x_res, y_res)
        self.audio: npt.NDArray[Any] | None = None

    @classmethod
    def of(cls, config: MelConfig) -> "Mel":
        """Create a converter from the configuration of a model."""
        made: Mel = cls(**config.model_dump())
        return made

    def mel_config(self) -> MelConfig:
        """Return the current configuration, with changes by `set_resolution` and assigned attributes."""
        return MelConfig(
            x_res=self.x_res,
            y_res=self.y_res,
            sample_rate=self.sr,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            top_db=self.top_db,
            n_iter=self.n_iter,
        )

    def set_resolution(self, x_res: int, y_res: int) -> None:
        """Set the image width in frames and the image height in mel bands."""
        self.x_res, self.y_res, self.n_mels = x_res, y_res, y_res
        self.slice_size = x_res * self.hop_length - 1

    def load_audio(self, audio_file: str | Path | None = None, raw_audio: npt.NDArray[Any] | None = None) -> None:
        """Load audio from a file or from samples.

        Audio of less than `x_res * hop_length` samples is padded with silence.

        Args:
            audio_file: A local file, which is decoded to mono at the sample rate of this object.
            raw_audio: Mono samples (n,) at the sample rate of this object, used if `audio_file` is None.

        Raises:
            ValueError: The file is longer than LONGEST_DECODED_S seconds, or both arguments are None.
        """
        if audio_file is not None:
            audio, _ = librosa.load(audio_file, mono=True, sr=self.sr, duration=LONGEST_DECODED_S + 1)
            if len(audio) > LONGEST_DECODED_S * self.sr:
                raise ValueError(f"{audio_file}: lasts more than {LONGEST_DECODED_S:.0f} s: use a shorter file")
        elif raw_audio is not None:
            audio = raw_audio
        else:
            raise ValueError("load_audio needs audio_file or raw_audio")
        missing = self.x_res * self.hop_length - len(audio)
        self.audio = audio if missing <= 0 else np.concatenate([audio, np.zeros(missing)])

    def get_number_of_slices(self) -> int:
        """Return the number of complete slices of `slice_size` samples in the loaded audio."""
        return len(self._loaded()) // self.slice_size

    def get_audio_slice(self, slice: int = 0) -> npt.NDArray[Any]:  # noqa: A002  # the original's name
        """Return the samples (slice_size,) of a slice. Slices are numbered from 0."""
        return self._loaded()[self.slice_size * slice : self.slice_size * (slice + 1)]

    def get_sample_rate(self) -> int:
        """Return the sample rate in Hz."""
        return self.sr

    def audio_slice_to_image(
        self,
        slice: int,  # noqa: A002  # the original's name
        ref: float | Callable[..., Any] = np.max,
    ) -> Image.Image:
        """Convert a slice to a grayscale image of width `x_res` and height `y_res`.

        Args:
            slice: The number of the slice, from 0.
            ref: The power of level 255, or a function that computes this power from the mel power spectrogram.

        Raises:
            ValueError: The loaded audio has no such slice.
        """
        samples = self.get_audio_slice(slice)
        if len(samples) == 0:
            raise ValueError(f"slice {slice}: the audio has {self.get_number_of_slices()}, counted from 0")
        power = librosa.feature.melspectrogram(
            y=samples, sr=self.sr, n_fft=self.n_fft, hop_length=self.hop_length, n_mels=self.n_mels
        )
        decibels = librosa.power_to_db(power, ref=ref, top_db=self.top_db)
        levels = ((decibels + self.top_db) * IMAGE_MAX / self.top_db).clip(0, IMAGE_MAX) + 0.5
        return Image.fromarray(levels.astype(np.uint8))

    def image_to_audio(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Convert a grayscale image to audio.

        Args:
            image: A mel image. Level 255 is power 1.

        Returns:
            Samples ((width - 1) * hop_length,).
        """
        vocoder = GriffinLim(self.mel_config())
        samples: npt.NDArray[np.float32] = vocoder(np.asarray(image, np.uint8)[np.newaxis], [0])[0]
        return samples

    def _loaded(self) -> npt.NDArray[Any]:
        if self.audio is None:
            raise ValueError("no audio: call load_audio first")
        return self.audio
