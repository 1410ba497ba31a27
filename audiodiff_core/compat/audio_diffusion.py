"""`AudioDiffusion` of the `audiodiffusion` package: a model that generates one loop at a time."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm.auto import tqdm

from audiodiff_core.compat.pipeline_audio_diffusion import AudioDiffusionPipeline

BEATS_PER_BAR = 4
Audio = npt.NDArray[np.float32]
SpectrogramAndAudio = tuple[Image.Image, tuple[int, Audio]]


class AudioDiffusion:
    """A model that generates one loop at a time.

    Args:
        model_id: A folder, an fsspec URI or a Hugging Face id.
        cuda: Run the model on the GPU. Defaults to True if there is a GPU.
        progress_bar: A function that wraps the denoising steps, or None for no progress bar.
    """

    def __init__(
        self,
        model_id: str = "teticio/audio-diffusion-256",
        cuda: bool | None = None,
        progress_bar: Callable[[Iterable[Any]], Iterable[Any]] | None = tqdm,
    ) -> None:
        self.model_id = model_id
        self.pipe = AudioDiffusionPipeline.from_pretrained(model_id)
        if torch.cuda.is_available() if cuda is None else cuda:
            self.pipe.to("cuda")
        self.progress_bar = progress_bar or (lambda steps: steps)

    def generate_spectrogram_and_audio(
        self,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        step_generator: torch.Generator | None = None,
        eta: float = 0,
        noise: torch.Tensor | None = None,
        encoding: torch.Tensor | None = None,
    ) -> SpectrogramAndAudio:
        """Generate an image and its audio.

        The arguments are the same as in `AudioDiffusionPipeline.__call__`.

        Returns:
            The image, and the audio as (sample rate in Hz, samples (n,)).
        """
        return self._first(
            steps=steps, generator=generator, step_generator=step_generator, eta=eta, noise=noise, encoding=encoding
        )

    def generate_spectrogram_and_audio_from_audio(
        self,
        audio_file: str | Path | None = None,
        raw_audio: npt.NDArray[Any] | None = None,
        slice: int = 0,  # noqa: A002  # the original's name
        start_step: int = 0,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        mask_start_secs: float = 0,
        mask_end_secs: float = 0,
        step_generator: torch.Generator | None = None,
        eta: float = 0,
        encoding: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> SpectrogramAndAudio:
        """Generate a variation or a continuation of a slice of audio.

        The arguments are the same as in `AudioDiffusionPipeline.__call__`.

        Returns:
            The image, and the audio as (sample rate in Hz, samples (n,)).
        """
        return self._first(
            audio_file=audio_file,
            raw_audio=raw_audio,
            slice=slice,
            start_step=start_step,
            steps=steps,
            generator=generator,
            mask_start_secs=mask_start_secs,
            mask_end_secs=mask_end_secs,
            step_generator=step_generator,
            eta=eta,
            encoding=encoding,
            noise=noise,
        )

    def _first(self, **arguments: Any) -> SpectrogramAndAudio:
        self.pipe.progress_bar = self.progress_bar
        pictures, (rate, audios) = self.pipe(batch_size=1, return_dict=False, **arguments)
        return pictures[0], (rate, audios[0])

    @staticmethod
    def loop_it(audio: npt.NDArray[Any], sample_rate: int, loops: int = 12) -> npt.NDArray[Any] | None:
        """Repeat the complete bars of four beats between the first and the last beat.

        librosa tracks the beats. `audiodiff_core.loops.cut` makes loops of exact length without a seam.

        Args:
            audio: Samples (n,).
            sample_rate: The sample rate in Hz.
            loops: The number of repetitions.

        Returns:
            Samples, or None if the audio has no complete bar.
        """
        from librosa.beat import beat_track

        _, beats = beat_track(y=audio, sr=sample_rate, units="samples")
        last = (len(beats) - 1) // BEATS_PER_BAR * BEATS_PER_BAR
        return np.tile(audio[beats[0] : beats[last]], loops) if last > 0 else None
