"""Pipeline of the `audiodiffusion` package: same arguments, and same images for equal generators.

Use this pipeline for existing code, and to reproduce earlier results. Its images depend on these bugs of
`audiodiffusion`, which are kept:

- A variation starts at the noise level of one step, and denoising starts at the next step.
- Only the first item of a batch starts from the audio.
- The part of the image that a mask keeps is one step too noisy.
- The tensor in the argument `noise` is overwritten.
- Inversion passes pixels to a latent network.

`audiodiff_core.pipeline` has none of these bugs, and works on batches.
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
from audiodiff_core.models import fold_of, folded, image_sides, sample_channels, unfolded

OutputImages = list[Image.Image]
Audios = list[npt.NDArray[np.float32]]

DDIM_STEPS, OTHER_STEPS = 50, 1_000


class AudioDiffusionPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """A diffusion model for mel images and their audio.

    The components are attributes, and can be replaced.

    Args:
        vqvae: The autoencoder of a latent model, or None.
        unet: The denoising network.
        mel: The converter between audio and images.
        scheduler: The noise schedule.
    """

    _optional_components = ["vqvae"]  # noqa: RUF012  # convention of diffusers

    def __init__(self, vqvae: Any, unet: Any, mel: Mel, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, mel=mel, vqvae=vqvae)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path) -> Self:
        """Load a model in any layout that `audiodiff_core.checkpoint` reads. Nothing is unpickled.

        Args:
            pretrained_model_name_or_path: A folder, an fsspec URI or a Hugging Face id.
        """
        model = load_model(pretrained_model_name_or_path)
        return cls(vqvae=model.vae, unet=model.unet, mel=Mel.of(model.mel), scheduler=model.scheduler)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the model to a folder that this package and diffusers can load, as safetensors only.

        Raises:
            ValueError: The scheduler cannot be saved. See `save_model`.
        """
        record = ModelRecord(recipe={}, data_digest="unknown", metrics={})
        save_model(save_directory, self.unet, self.scheduler, self.mel.mel_config(), record, vae=self.vqvae)

    def get_default_steps(self) -> int:
        """Return the default number of steps: 50 for DDIM, 1000 for any other scheduler."""
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
        """Generate images and their audio.

        Args:
            batch_size: The number of images.
            audio_file: A local file to vary.
            raw_audio: Mono samples (n,) to vary, at the sample rate of the model.
            slice: The number of the slice of the audio, from 0.
            start_step: The step at which the variation of the audio starts.
            steps: The number of denoising steps. Defaults to `get_default_steps()`.
            generator: The random generator of the initial noise and of the latents of the audio.
            mask_start_secs: The duration in seconds at the start of the audio that is kept.
            mask_end_secs: The duration in seconds at the end of the audio that is kept.
            step_generator: The random generator of the noise of the steps. Defaults to `generator`.
            eta: The stochasticity of DDIM, 0 (deterministic) to 1. Other schedulers ignore it.
            noise: The initial noise (batch, channels, height, width). It is overwritten if `start_step` is more than 0.
            encoding: The conditioning (batch, length, width) of a conditional network.
            return_dict: Return an output object instead of a tuple.

        Returns:
            An object with `images`, a list, and `audios`, an array (batch, 1, n). If `return_dict` is False, a tuple
            (images, (sample rate in Hz, list of samples (n,))).
        """
        self.scheduler.set_timesteps(steps or self.get_default_steps())
        timesteps = self.scheduler.timesteps[start_step:]
        height, width = image_sides(self.unet)
        if noise is None:
            noise = randn_tensor(
                (batch_size, sample_channels(self.unet), height, width), generator=generator, device=self.device
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
        outputs = self._output_images(images)
        audios = [self.mel.image_to_audio(image) for image in outputs]
        if not return_dict:
            return outputs, (self.mel.get_sample_rate(), audios)
        return BaseOutput(**AudioPipelineOutput(np.array(audios)[:, np.newaxis, :]), **ImagePipelineOutput(outputs))

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], steps: int = DDIM_STEPS) -> torch.Tensor:
        """Invert images to noise, by DDIM steps in reverse order.

        Args:
            images: Grayscale images of the size of the model.
            steps: The number of steps.

        Returns:
            Noise (batch, 1, height, width) from which DDIM generates approximately these images in `steps` steps.

        Raises:
            ValueError: The scheduler is not DDIMScheduler.
        """
        if not isinstance(self.scheduler, DDIMScheduler):
            raise ValueError(f"encode needs DDIMScheduler, but the pipeline has {type(self.scheduler).__name__}")
        self.scheduler.set_timesteps(steps)
        levels = np.stack([np.asarray(image, np.uint8) for image in images])[:, np.newaxis]
        sample = torch.Tensor(levels / IMAGE_MAX * 2 - 1).to(self.device)
        stride = self.scheduler.config.num_train_timesteps // self.scheduler.num_inference_steps
        for timestep in self.progress_bar(torch.flip(self.scheduler.timesteps, (0,))):
            previous = timestep - stride
            alpha = self.scheduler.alphas_cumprod[timestep]
            alpha_previous = (
                self.scheduler.alphas_cumprod[previous] if previous >= 0 else self.scheduler.final_alpha_cumprod
            )
            prediction = self._prediction(sample, timestep, None)
            # DDIM step (Song et al. 2020, eq. 12 with sigma 0), solved for the noisier sample
            sample = (sample - (1 - alpha_previous) ** 0.5 * prediction) * alpha_previous ** (-0.5)
            sample = sample * alpha**0.5 + (1 - alpha) ** 0.5 * prediction
        return sample

    @staticmethod
    def slerp(x0: torch.Tensor, x1: torch.Tensor, alpha: float) -> torch.Tensor:
        """Interpolate between two tensors on a sphere, with each tensor as one vector.

        Args:
            x0: The tensor at `alpha` 0.
            x1: The tensor at `alpha` 1, of the same shape. It must not be parallel to `x0`.
            alpha: The position between the tensors.
        """
        # Shoemake 1985
        angle = math.acos(torch.dot(torch.flatten(x0), torch.flatten(x1)) / torch.norm(x0) / torch.norm(x1))
        return math.sin((1 - alpha) * angle) * x0 / math.sin(angle) + math.sin(alpha * angle) * x1 / math.sin(angle)

    def _source(self, number: int, generator: torch.Generator | None) -> torch.Tensor:
        """Return a slice of the loaded audio as input for the network: (channels, height, width)."""
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
        fold = fold_of(self.unet)
        inputs: tuple[Any, ...] = (folded(images, fold), timestep)
        if isinstance(self.unet, UNet2DConditionModel):
            inputs = (*inputs, encoding)
        return unfolded(self.unet(*inputs)["sample"], fold)

    def _output_images(self, images: torch.Tensor) -> OutputImages:
        """Convert the output of the network, pixels or latents, to grayscale images."""
        if self.vqvae is not None:
            images = self.vqvae.decode(1 / self.vqvae.config.scaling_factor * images)["sample"]
        values = (images / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
        levels = (values * IMAGE_MAX).round().astype(np.uint8)
        return [
            Image.fromarray(item[:, :, 0]) if item.shape[2] == 1 else Image.fromarray(item).convert("L")
            for item in levels
        ]
