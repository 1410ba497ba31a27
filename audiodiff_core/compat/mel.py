"""The original's `Mel`, one object that holds the audio of the moment: for code written for it. New code uses `audiodiff_core.mel.analysis.Mel`."""

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


class Mel(ConfigMixin, SchedulerMixin):  # type: ignore[misc]  # they have no types
    """Audio <-> images, number for number as the original (and diffusers' copy) made them: by librosa, each slice relative to its own maximum.

    Audio is made by this project's vocoder: the original's phases were random, these are the same for the same image.
    """

    config_name = "mel_config.json"

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers states no types for it
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
        made: Mel = cls(**config.model_dump())
        return made

    def mel_config(self) -> MelConfig:
        """What this object is set to now, which `set_resolution` and assigned attributes may have changed since it was made."""
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
        """Image width in frames and height in mel bands."""
        self.x_res, self.y_res, self.n_mels = x_res, y_res, y_res
        self.slice_size = x_res * self.hop_length - 1

    def load_audio(self, audio_file: str | Path | None = None, raw_audio: npt.NDArray[Any] | None = None) -> None:
        """Load a file, mono at this object's rate, or take samples (n,) as they are; less than x_res * hop_length samples are padded with silence.

        Raises ValueError for a file that lasts more than LONGEST_DECODED_S.
        """
        if audio_file is not None:
            audio, _ = librosa.load(audio_file, mono=True, sr=self.sr, duration=LONGEST_DECODED_S + 1)
            if len(audio) > LONGEST_DECODED_S * self.sr:
                raise ValueError(f"{audio_file}: lasts more than {LONGEST_DECODED_S:.0f} s, use a shorter file")
        elif raw_audio is not None:
            audio = raw_audio
        else:
            raise ValueError("load_audio needs audio_file or raw_audio")
        missing = self.x_res * self.hop_length - len(audio)
        self.audio = audio if missing <= 0 else np.concatenate([audio, np.zeros(missing)])

    def get_number_of_slices(self) -> int:
        return len(self._loaded()) // self.slice_size

    def get_audio_slice(self, slice: int = 0) -> npt.NDArray[Any]:  # noqa: A002  # the original's name
        """The samples of a slice, counted from 0: (slice_size,)."""
        return self._loaded()[self.slice_size * slice : self.slice_size * (slice + 1)]

    def get_sample_rate(self) -> int:
        return self.sr

    def audio_slice_to_image(self, slice: int, ref: float | Callable[..., Any] = np.max) -> Image.Image:  # noqa: A002  # the original's name
        """A slice as a greyscale image, x_res wide, y_res high. `ref`: the power that is 255, or what gives it from the slice's powers."""
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
        """A greyscale image -> audio ((width - 1) * hop_length,), its level that of an image whose 255 is power 1."""
        samples: npt.NDArray[np.float32] = GriffinLim(self.mel_config())(np.asarray(image, np.uint8)[np.newaxis], [0])[
            0
        ]
        return samples

    def _loaded(self) -> npt.NDArray[Any]:
        if self.audio is None:
            raise ValueError("no audio: call load_audio first")
        return self.audio
