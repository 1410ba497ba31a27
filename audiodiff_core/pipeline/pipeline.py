"""Generation, variation, inpainting, extension, remixing, inversion and interpolation of loops."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline.geometry import Geometry, P
from audiodiff_core.pipeline.inputs import Encodings, Inputs
from audiodiff_core.pipeline.interpolation import Noise, chain, linear_chain
from audiodiff_core.pipeline.long_loops import LongLoopRenderer
from audiodiff_core.pipeline.loop import Loop
from audiodiff_core.pipeline.rendering import Renderer, RenderJob
from audiodiff_core.pipeline.sources import Audio, Mask, Source, Span, kept_latents, kept_pixels, track_image
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Sampler, initial_noise
from audiodiff_core.vocoder import GriffinLim, Vocoder, require_mel

DEFAULT_REFINEMENTS = 3


class AudioDiffusionPipeline:
    """Pipeline for generation of loops with a trained model.

    A sample is the input of the network: a mel image, or the latent of a mel image. The pipeline keeps no state between
    calls. It works in batches, but the bytes of a loop do not depend on the other loops.

    Every method takes one source, mask or encoding per request. It raises a ValueError that names a wrong argument and
    its value, and a FloatingPointError if a network returns NaN or infinity. A conditional model needs `encodings`, a
    float array (n, dim), in every call. An unconditional model takes no encodings.

    Args:
        unet: The denoising network. The model is conditional if the network's configuration has `cross_attention_dim`.
        scheduler: The diffusers scheduler that is saved with the model.
        mel: The mel configuration of the images.
        profile: The execution profile.
        vocoder: The vocoder. None selects GriffinLim.
        vae: The AutoencoderKL of a latent model. None for a model that works on images.

    Attributes:
        geometry: Image and sample sizes of the model.
        mel: The mel configuration.
        vocoder: The vocoder.
        sampler: The sampler.
        vae: The AutoencoderKL in float32 on the device of the profile, or None.

    Raises:
        ValueError: If the parts do not fit each other.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        mel: MelConfig,
        profile: ExecutionProfile,
        vocoder: Vocoder | None = None,
        *,
        vae: Any = None,
    ) -> None:
        self.geometry = Geometry.of(unet, vae, mel)
        self.mel = mel
        self.vocoder = vocoder or GriffinLim(mel, profile.device)
        require_mel(self.vocoder, mel)
        self.sampler = Sampler(unet, scheduler, profile)
        self.vae = None if vae is None else vae.float().to(profile.device).eval()
        self._inputs = Inputs(self.geometry, scheduler)
        self._renderer = Renderer(self.sampler, self.vocoder, self.vae)
        self._long_loops = LongLoopRenderer(self._renderer, self.geometry)

    @property
    def profile(self) -> ExecutionProfile:
        """The execution profile."""
        return self.sampler.profile

    @property
    def conditional(self) -> bool:
        """True if the model needs encodings."""
        return self.geometry.encoding_dim is not None

    def resolved(self, request: P) -> P:
        """Return a copy of the request with the default scheduler, number of steps and width filled in.

        Raises:
            ValueError: If the model does not support the request.
        """
        return self.geometry.resolved(request, self.sampler.scheduler)

    def generate(
        self, requests: Iterable[GenerateRequest], encodings: Encodings | None = None, noises: Noise | None = None
    ) -> Iterator[Loop]:
        """Generate loops from noise.

        Args:
            requests: The requests. Without encodings and noises, they may be unlimited in number, and a request is
                consumed only when batch slots are free.
            encodings: Encodings (n, dim) of a conditional model.
            noises: Initial noises (n, channels, height, width) from `noise`, `invert` or `slerp`, in the shape of the
                samples. None draws them from the seeds.

        Yields:
            The loops, in the order in which they finish.
        """
        if encodings is None and noises is None and not self.conditional:
            return self._renderer.render(
                RenderJob(number, self._inputs.item(request)) for number, request in enumerate(requests)
            )
        items = self._inputs.items(list(requests), encodings)
        if noises is not None:
            if len(noises) != len(items):
                raise ValueError(f"{len(noises)} noises for {len(items)} requests: pass one per request")
            items = [
                replace(item, noise=self._inputs.checked_noise(noise, item))
                for item, noise in zip(items, noises, strict=True)
            ]
        return self._renderer.render(RenderJob(number, item) for number, item in enumerate(items))

    def vary(
        self,
        requests: Sequence[GenerateRequest],
        sources: Sequence[Source],
        strength: float | None = None,
        start_step: int | None = None,
        encodings: Encodings | None = None,
    ) -> Iterator[Loop]:
        """Generate variations of sources: add noise, and denoise (SDEdit, Meng et al. 2021).

        Args:
            requests: The requests.
            sources: One source per request.
            strength: Fraction of the steps to take, in (0, 1]. 1 keeps almost nothing of the source. Default: 0.5.
            start_step: Number of steps to skip, 0 to steps - 1, as an alternative to `strength`.
            encodings: Encodings (n, dim) of a conditional model.

        Yields:
            The loops, in the order in which they finish.
        """
        items, images = self._inputs.items_and_images(requests, sources, encodings)
        jobs = []
        for number, (item, image) in enumerate(zip(items, images, strict=True)):
            start = self._inputs.start_step(item.request, strength, start_step)
            clean = self._renderer.encode(image, item.request.seamless)
            jobs.append(RenderJob(number, replace(item, clean=clean, start_step=start)))
        return self._renderer.render(jobs)

    def inpaint(
        self,
        requests: Sequence[GenerateRequest],
        sources: Sequence[Source],
        regenerate: Sequence[Sequence[Span] | Mask],
        start_step: int = 0,
        encodings: Encodings | None = None,
    ) -> Iterator[Loop]:
        """Regenerate part of each source to fit the rest. A part at an end of a source is outpainted.

        Args:
            requests: The requests.
            sources: One source per request.
            regenerate: Per source, spans (start, end) in seconds or a boolean mask (y_res, width) of the pixels to
                regenerate. All other pixels are those of the source.
            start_step: Number of steps to skip, 0 to steps - 1. If not 0, the source shapes the regenerated part too.
            encodings: Encodings (n, dim) of a conditional model.

        Yields:
            The loops, in the order in which they finish.
        """
        if len(regenerate) != len(requests):
            raise ValueError(f"{len(regenerate)} masks for {len(requests)} requests: pass one per request")
        items, images = self._inputs.items_and_images(requests, sources, encodings)
        jobs = []
        for number, (item, image, region) in enumerate(zip(items, images, regenerate, strict=True)):
            self._inputs.start_step(item.request, None, start_step)  # checks the range
            kept = kept_pixels(region, self.mel, self.geometry.width(item.request))
            keep = torch.from_numpy(kept_latents(kept, self.geometry.factor))
            clean = self._renderer.encode(image, item.request.seamless)
            jobs.append(RenderJob(number, replace(item, clean=clean, keep=keep, start_step=start_step), image, kept))
        return self._renderer.render(jobs)

    def extend(
        self,
        requests: Sequence[GenerateRequest],
        duration_s: float,
        sources: Sequence[Source] | None = None,
        *,
        overlap: float = 0.5,
        encodings: Encodings | None = None,
    ) -> list[Loop]:
        """Generate loops of any length, window by window.

        Args:
            requests: The requests. Their width is the width of a window.
            duration_s: Duration of the loops in seconds.
            sources: One source per request, with which the loop begins. None begins with a generated window.
            overlap: Fraction of a window that the next window shares, in (0, 1).
            encodings: Encodings (n, dim) of a conditional model.

        Returns:
            The loops, in the order of the requests.
        """
        columns = self._inputs.columns(duration_s)
        if sources is None:
            return self._long_loops.extend(self._inputs.items(requests, encodings), None, columns, overlap)
        items, images = self._inputs.items_and_images(requests, sources, encodings)
        return self._long_loops.extend(items, images, columns, overlap)

    def remix(
        self,
        requests: Sequence[GenerateRequest],
        tracks: Sequence[Audio],
        strength: float | None = None,
        start_step: int | None = None,
        *,
        overlap: float = 0.5,
        encodings: Encodings | None = None,
    ) -> list[Loop]:
        """Generate variations of whole tracks, window by window.

        Each window varies its part of the track, as `vary` does, and continues the result of the previous window.

        Args:
            requests: The requests. Their width is the width of a window.
            tracks: One track per request.
            strength: Fraction of the steps to take, as in `vary`.
            start_step: Number of steps to skip, as in `vary`.
            overlap: Fraction of a window that the next window shares, in (0, 1).
            encodings: Encodings (n, dim) of a conditional model.

        Returns:
            The loops, in the order of the requests, each as long as its track.
        """
        if len(tracks) != len(requests):
            raise ValueError(f"{len(tracks)} tracks for {len(requests)} requests: pass one per request")
        loops = []
        for number, (item, track) in enumerate(zip(self._inputs.items(requests, encodings), tracks, strict=True)):
            image = track_image(track, self.mel)
            start = self._inputs.start_step(item.request, strength, start_step)
            loops.append(self._long_loops.remix(number, replace(item, start_step=start), image, overlap))
        return loops

    @torch.inference_mode()
    def invert(
        self,
        requests: Sequence[GenerateRequest],
        sources: Sequence[Source],
        encodings: Encodings | None = None,
        refinements: int = DEFAULT_REFINEMENTS,
    ) -> Noise:
        """Invert sources to the noises from which `generate` reproduces them with the same requests.

        The requests must use DDIM, or Euler's method for a flow model. If the scheduler clips (`clip_sample`), the
        reproduction is slightly less exact.

        Args:
            requests: The requests. Their seeds have no effect.
            sources: One source per request.
            encodings: Encodings (n, dim) of a conditional model.
            refinements: Corrections per step, 0 to 100. Each costs one network call. 0 is first-order DDIM inversion.

        Returns:
            Noises (n, channels, height, width).
        """
        if not 0 <= refinements <= 100:
            raise ValueError(f"refinements {refinements} is not in 0 to 100")
        items = [
            replace(item, clean=self._renderer.encode(image, item.request.seamless), refinements=refinements)
            for item, image in zip(*self._inputs.items_and_images(requests, sources, encodings), strict=True)
        ]
        noises = dict(self.sampler.invert(items))
        return np.stack([noises[item].numpy() for item in items])

    def noise(self, requests: Sequence[GenerateRequest]) -> Noise:
        """Return the initial noises (n, channels, height, width) of requests of one width."""
        shapes = [self._inputs.shape(self._inputs.width(self.resolved(request))) for request in requests]
        return np.stack(
            [initial_noise(request.seed, shape).numpy() for request, shape in zip(requests, shapes, strict=True)]
        )

    def interpolate(
        self, request: GenerateRequest, noises: Noise, between: int, encodings: Encodings | None = None
    ) -> Iterator[Loop]:
        """Generate loops along an interpolation through key noises.

        Args:
            request: The request of every loop.
            noises: Key noises (k, channels, height, width).
            between: Number of loops between two neighboring keys.
            encodings: Encodings (k, dim) of a conditional model, interpolated linearly.

        Yields:
            The loops, in the order in which they finish, numbered along the interpolation.
        """
        chained = chain(noises, between)
        if encodings is not None:
            if len(encodings) != len(noises):
                raise ValueError(f"{len(encodings)} encodings for {len(noises)} noises: pass one per noise")
            encodings = linear_chain(encodings, between)
        return self.generate([request] * len(chained), encodings, chained)
