"""The original's pipeline: the same arguments, the same images for the same generators, its faults included.

For code written for it, and for results that must be those of before. What it does wrong is kept, because what it makes depends on it:
variations start at one level of noise and are denoised from the next, only the first item of a batch takes the audio, the pasted part of
a mask is one level too noisy, the caller's `noise` is overwritten, inversion gives a latent network pixels. `audiodiff_core.pipeline`
does all of it right, for batches.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput, ImagePipelineOutput
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from audiodiff_core.checkpoint import ModelRecord, load_model, save_model
from audiodiff_core.compat.mel import Mel
from audiodiff_core.mel import IMAGE_MAX

OutputImages = list[Image.Image]
Audios = list[npt.NDArray[np.float32]]

DDIM_STEPS, OTHER_STEPS = 50, 1_000


class AudioDiffusionPipeline(DiffusionPipeline):  # type: ignore[misc]  # it has no types
    """Network, noise schedule, `Mel` and, for latent models, `vqvae`; each may be assigned anew."""

    _optional_components = ["vqvae"]  # noqa: RUF012  # diffusers' own convention

    def __init__(self, vqvae: Any, unet: Any, mel: Mel, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, mel=mel, vqvae=vqvae)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path) -> Self:
        """A model from a folder, an fsspec URI or a Hugging Face id, in any layout that `audiodiff_core.checkpoint` reads; nothing is unpickled."""
        model = load_model(pretrained_model_name_or_path)
        return cls(vqvae=model.vae, unet=model.unet, mel=Mel.of(model.mel), scheduler=model.scheduler)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes the model as a folder that this package and diffusers load, safetensors only."""
        record = ModelRecord(recipe={}, data_digest="unknown", metrics={})
        save_model(save_directory, self.unet, self.scheduler, self.mel.mel_config(), record, vae=self.vqvae)

    def get_default_steps(self) -> int:
        """50 with DDIM, 1000 with any other scheduler."""
        return DDIM_STEPS if isinstance(self.scheduler, DDIMScheduler) else OTHER_STEPS

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
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
        noise: torch.Tensor | None = None,
        encoding: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> BaseOutput | tuple[OutputImages, tuple[int, Audios]]:
        """Generates `batch_size` images and their audio.

        audio_file, raw_audio (n,): audio whose slice number `slice` is varied from `start_step` on; its first `mask_start_secs` and last
        `mask_end_secs` seconds are kept. noise: (batch, channels, height, width), overwritten where start_step > 0. encoding: (batch, length,
        width) for conditional networks. eta: DDIM's. Gives an output with `images` and `audios` (batch, 1, n), or with return_dict False
        (images, (sample rate in Hz, audios)).
        """
        self.scheduler.set_timesteps(steps or self.get_default_steps())
        timesteps = self.scheduler.timesteps[start_step:]
        height, width = self._sides()
        if noise is None:
            noise = randn_tensor(
                (batch_size, self.unet.config.in_channels, height, width), generator=generator, device=self.device
            )
        images = noise
        kept = None
        if audio_file is not None or raw_audio is not None:
            self.mel.load_audio(audio_file, raw_audio)
            source = self._source(slice, generator)
            if start_step > 0:
                images[0, 0] = self.scheduler.add_noise(source, noise, self.scheduler.timesteps[start_step - 1])
            kept = self.scheduler.add_noise(source, noise, timesteps.clone())  # (batch, steps, height, width)
        pixels_per_second = width * self.mel.get_sample_rate() / self.mel.x_res / self.mel.hop_length
        first, last = int(mask_start_secs * pixels_per_second), int(mask_end_secs * pixels_per_second)
        options = {"eta": eta} if isinstance(self.scheduler, DDIMScheduler) else {}
        for step, timestep in enumerate(self.progress_bar(timesteps)):
            prediction = self._prediction(images, timestep, encoding)
            images = self.scheduler.step(
                prediction, timestep, images, generator=step_generator or generator, **options
            )["prev_sample"]
            if kept is not None and first > 0:
                images[..., :first] = kept[:, step, :, :first]
            if kept is not None and last > 0:
                images[..., -last:] = kept[:, step, :, -last:]
        pictures = self._pictures(images)
        audios = [self.mel.image_to_audio(picture) for picture in pictures]
        if not return_dict:
            return pictures, (self.mel.get_sample_rate(), audios)
        return BaseOutput(**AudioPipelineOutput(np.array(audios)[:, np.newaxis, :]), **ImagePipelineOutput(pictures))

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], steps: int = DDIM_STEPS) -> torch.Tensor:
        """Noise (batch, 1, height, width) from which DDIM makes about these images in as many steps: its steps run backwards."""
        if not isinstance(self.scheduler, DDIMScheduler):
            raise ValueError(f"encode needs DDIMScheduler, the pipeline has {type(self.scheduler).__name__}")
        self.scheduler.set_timesteps(steps)
        levels = np.stack([np.asarray(image, np.uint8) for image in images])[:, np.newaxis]
        sample = torch.Tensor(levels / IMAGE_MAX * 2 - 1).to(self.device)
        stride = self.scheduler.config.num_train_timesteps // self.scheduler.num_inference_steps
        for timestep in self.progress_bar(torch.flip(self.scheduler.timesteps, (0,))):
            before = timestep - stride
            kept = self.scheduler.alphas_cumprod[timestep]
            kept_before = self.scheduler.alphas_cumprod[before] if before >= 0 else self.scheduler.final_alpha_cumprod
            prediction = self.unet(sample, timestep)["sample"]
            sample = (sample - (1 - kept_before) ** 0.5 * prediction) * kept_before ** (-0.5)
            sample = sample * kept**0.5 + (1 - kept) ** 0.5 * prediction
        return sample

    @staticmethod
    def slerp(x0: torch.Tensor, x1: torch.Tensor, alpha: float) -> torch.Tensor:
        """Spherical interpolation of two tensors, each taken as one vector: x0 at `alpha` 0, x1 at 1. Parallel ones have none."""
        angle = math.acos(torch.dot(torch.flatten(x0), torch.flatten(x1)) / torch.norm(x0) / torch.norm(x1))
        return math.sin((1 - alpha) * angle) * x0 / math.sin(angle) + math.sin(alpha * angle) * x1 / math.sin(angle)

    def _sides(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def _source(self, number: int, generator: torch.Generator | None) -> torch.Tensor:
        """A slice of the loaded audio as the network's values (channels, height, width)."""
        levels = np.asarray(self.mel.audio_slice_to_image(number))
        source = torch.tensor((levels / IMAGE_MAX * 2 - 1)[np.newaxis], dtype=torch.float).to(self.device)
        if self.vqvae is None:
            return source
        latents: torch.Tensor = (
            self.vqvae.config.scaling_factor
            * self.vqvae.encode(source.unsqueeze(0)).latent_dist.sample(generator=generator)[0]
        )
        return latents

    def _prediction(self, images: torch.Tensor, timestep: torch.Tensor, encoding: torch.Tensor | None) -> torch.Tensor:
        inputs = (images, timestep, encoding) if isinstance(self.unet, UNet2DConditionModel) else (images, timestep)
        prediction: torch.Tensor = self.unet(*inputs)["sample"]
        return prediction

    def _pictures(self, images: torch.Tensor) -> OutputImages:
        """The network's values (or latents) as greyscale pictures."""
        if self.vqvae is not None:
            images = self.vqvae.decode(1 / self.vqvae.config.scaling_factor * images)["sample"]
        values = (images / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
        levels = (values * IMAGE_MAX).round().astype(np.uint8)
        return [
            Image.fromarray(item[:, :, 0]) if item.shape[2] == 1 else Image.fromarray(item).convert("L")
            for item in levels
        ]
