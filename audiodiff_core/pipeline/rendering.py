"""Rendering of items as loops: sampling, decoding to mel images and synthesis of the audio."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch

from audiodiff_core.latents import decode_latents, encode_latents
from audiodiff_core.mel import Images, to_image, to_model
from audiodiff_core.models.circular import circular_time
from audiodiff_core.pipeline.loop import Loop, normalize
from audiodiff_core.pipeline.sources import Mask
from audiodiff_core.sampling import Item, Sampler
from audiodiff_core.vocoder import Vocoder


@dataclass(frozen=True, eq=False)
class RenderJob:
    """An item to render as a loop.

    Attributes:
        number: Index of the item in the call.
        item: The item.
        source: The source image (y_res, width). None if no part of a source is kept.
        kept: Mask (y_res, width), True where the image of the loop keeps the pixels of `source`.
    """

    number: int
    item: Item
    source: Images | None = None
    kept: Mask | None = None


class Renderer:
    """Renderer of items as loops.

    Args:
        sampler: The sampler.
        vocoder: The vocoder.
        vae: The AutoencoderKL of a latent model, on the sampler's device, or None.
    """

    def __init__(self, sampler: Sampler, vocoder: Vocoder, vae: Any = None) -> None:
        self.sampler = sampler
        self.vocoder = vocoder
        self.vae = vae

    def encode(self, image: Images, circular: bool = False) -> torch.Tensor:
        """Convert a mel image to a sample.

        Args:
            image: The image (y_res, width).
            circular: Whether the image is one period of a loop.

        Returns:
            The sample (channels, height, width): the image in [-1, 1], or its latent.
        """
        pixels = torch.from_numpy(to_model(image))[None, None]
        if self.vae is None:
            return pixels[0]
        with circular_time(self.vae) if circular else nullcontext():
            return encode_latents(self.vae, pixels)[0]

    def decode(self, samples: torch.Tensor, circular: bool = False) -> Images:
        """Convert samples to mel images.

        Args:
            samples: Samples (n, channels, height, width).
            circular: Whether the samples are periods of loops.

        Returns:
            Images (n, y_res, width).

        Raises:
            FloatingPointError: If the autoencoder returns NaN or infinity.
        """
        if self.vae is not None:
            with circular_time(self.vae) if circular else nullcontext():
                samples = decode_latents(self.vae, samples)
            if not bool(torch.isfinite(samples).all()):
                raise FloatingPointError(
                    "the autoencoder's images are not finite: its weights are broken, use another model"
                )
        return to_image(samples[:, 0].numpy())

    def render(self, jobs: Iterable[RenderJob]) -> Iterator[Loop]:
        """Yield the loop of each job, in the order in which the items finish.

        Args:
            jobs: The jobs, which may be unlimited in number. A job is consumed only when batch slots are free.
        """
        in_progress: dict[Item, RenderJob] = {}

        def items() -> Iterator[Item]:
            for job in jobs:
                in_progress[job.item] = job
                yield job.item

        finished = self.sampler.sample(items())
        while batch := list(islice(finished, self.sampler.profile.batch_size)):
            batch.sort(key=lambda pair: pair[0].pool)
            for (_, circular), pairs in groupby(batch, key=lambda pair: pair[0].pool):
                pool = list(pairs)
                images = self.decode(torch.stack([sample for _, sample in pool]), circular)
                pool_jobs = [in_progress.pop(item) for item, _ in pool]
                for image, job in zip(images, pool_jobs, strict=True):
                    if job.source is not None and job.kept is not None:
                        np.copyto(image, job.source, where=job.kept)
                audios = self.vocoder(images, [job.item.request.seed for job in pool_jobs], circular=circular)
                for job, image, audio in zip(pool_jobs, images, audios, strict=True):
                    yield Loop(job.item.request, image, normalize(audio), job.number)
