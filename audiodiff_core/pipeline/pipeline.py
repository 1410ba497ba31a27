"""`AudioDiffusionPipeline`: all that a trained model can be asked for, in batches, a seed for each item."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch

from audiodiff_core.latents import decode_latents, encode_latents
from audiodiff_core.mel import Images, MelConfig, to_image, to_model
from audiodiff_core.models.circular import circular_time
from audiodiff_core.pipeline.geometry import Geometry, P
from audiodiff_core.pipeline.inputs import Encodings, Inputs
from audiodiff_core.pipeline.interpolation import Noise, chain
from audiodiff_core.pipeline.loop import Loop, normalise
from audiodiff_core.pipeline.sources import Audio, Mask, Source, Span, kept_latents, kept_pixels, track_image
from audiodiff_core.pipeline.windows import Windows
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Item, Sampler, initial_noise
from audiodiff_core.vocoder import GriffinLim, Vocoder, require_mel

REFINEMENTS = 3


@dataclass(frozen=True, eq=False)
class _Job:
    """An item with its number and, where some of it is kept, the image and the pixels to keep."""

    number: int
    item: Item
    image: Images | None = None
    kept: Mask | None = None


class AudioDiffusionPipeline:
    """Network, noise schedule, mel configuration and vocoder, on one device by one execution profile; with `vae`, a latent model.

    Holds no state between calls. Everything is made in batches of the profile's shape, and is the same bytes in any company. What a
    call says of each item (sources, masks, encodings) it takes as a sequence with one for each request; a mistake is a ValueError that
    names what is wrong and its value. A conditional model (its network has `cross_attention_dim`) needs `encodings`, float (n, dim), in
    every call, another one takes none.
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
        self._inputs = Inputs(self.geometry, scheduler)
        self.mel = mel
        self.vocoder = vocoder or GriffinLim(mel, profile.device)
        require_mel(self.vocoder, mel)
        self.sampler = Sampler(unet, scheduler, profile)
        self.vae = None if vae is None else vae.float().to(profile.device).eval()

    @property
    def profile(self) -> ExecutionProfile:
        return self.sampler.profile

    @property
    def conditional(self) -> bool:
        return self.geometry.encoding_dim is not None

    def resolved(self, request: P) -> P:
        """`request` with the scheduler, steps and width that None stands for. Raises ValueError where this model cannot do it."""
        return self.geometry.resolved(request, self.sampler.scheduler)

    def generate(
        self, requests: Iterable[GenerateRequest], encodings: Encodings | None = None, noises: Noise | None = None
    ) -> Iterator[Loop]:
        """Yields a Loop for each request, in the order in which they finish; requests without encodings or noises are taken as places come free.

        noises: (n, channels, height, width) of what the network sees, in place of those of the seeds: from `noise`, `invert` or `slerp`.
        """
        if encodings is None and noises is None and not self.conditional:
            return self._made(_Job(number, self._inputs.item(request)) for number, request in enumerate(requests))
        items = self._inputs.items(list(requests), encodings)
        if noises is not None:
            if len(noises) != len(items):
                raise ValueError(f"{len(noises)} noises for {len(items)} requests: each needs one")
            items = [
                replace(item, noise=self._inputs.checked_noise(noise, item))
                for item, noise in zip(items, noises, strict=True)
            ]
        return self._made(_Job(number, item) for number, item in enumerate(items))

    def vary(
        self,
        requests: Sequence[GenerateRequest],
        sources: Sequence[Source],
        strength: float | None = None,
        start_step: int | None = None,
        encodings: Encodings | None = None,
    ) -> Iterator[Loop]:
        """Variations: each source is noised to the level of `start_step` and denoised from there (SDEdit, Meng et al. 2021).

        strength: in (0, 1], the share of the steps that is taken, 1 leaving next to nothing of the source; none: 0.5. start_step says
        the same by the number of steps left out, 0 to steps - 1.
        """
        jobs = []
        for number, (item, image) in enumerate(zip(*self._inputs.sourced(requests, sources, encodings), strict=True)):
            start = self._inputs.start_step(item.request, strength, start_step)
            jobs.append(
                _Job(number, replace(item, clean=self._encoded(image, item.request.seamless), start_step=start))
            )
        return self._made(jobs)

    def inpaint(
        self,
        requests: Sequence[GenerateRequest],
        sources: Sequence[Source],
        regenerate: Sequence[Sequence[Span] | Mask],
        start_step: int = 0,
        encodings: Encodings | None = None,
    ) -> Iterator[Loop]:
        """Makes part of each source anew, so that it fits the rest; outpaints where that part is the end of a source or its beginning.

        regenerate: for each, spans (from, to) in seconds, or a bool mask (y_res, width); all other pixels of the result are the source's.
        start_step: steps left out, so that something of the source shapes what is made anew.
        """
        if len(regenerate) != len(requests):
            raise ValueError(f"{len(regenerate)} masks for {len(requests)} requests: each needs one")
        jobs = []
        for number, (item, image, wanted) in enumerate(
            zip(*self._inputs.sourced(requests, sources, encodings), regenerate, strict=True)
        ):
            self._inputs.start_step(item.request, None, start_step)
            kept = kept_pixels(wanted, self.mel, self.geometry.width(item.request))
            keep = torch.from_numpy(kept_latents(kept, self.geometry.factor))
            clean = self._encoded(image, item.request.seamless)
            jobs.append(_Job(number, replace(item, clean=clean, keep=keep, start_step=start_step), image, kept))
        return self._made(jobs)

    def extend(
        self,
        requests: Sequence[GenerateRequest],
        duration_s: float,
        sources: Sequence[Source] | None = None,
        *,
        overlap: float = 0.5,
        encodings: Encodings | None = None,
    ) -> list[Loop]:
        """Loops of any length, in the requests' order: windows of the requests' width, each outpainted from what it shares with the one before it.

        They begin with the sources' slices or, without, with what `generate` makes. overlap: the share of a window that the next one continues.
        """
        columns = self._inputs.columns(duration_s)
        if sources is None:
            items, images = self._inputs.items(requests, encodings), None
        else:
            items, images = self._inputs.sourced(requests, sources, encodings)
        windows = self._windows(items, columns, overlap)
        first = None if images is None else [[self._encoded(image)] for image in images]
        samples = self._chained(items, windows, first or [[] for _ in items])
        loops = []
        for number, (item, made) in enumerate(zip(items, samples, strict=True)):
            whole = self._joined(windows, made)
            if images is not None:
                whole[:, : images[number].shape[1]] = images[number]
            loops.append(self._long_loop(number, item, whole[:, :columns]))
        return loops

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
        """Whole tracks in the model's manner, in the requests' order and as long as the tracks: each window of a track is varied as `vary` does, and
        continues what was made of the window before it. All windows start from the seed's one noise, which gives the track one style.
        """
        if len(tracks) != len(requests):
            raise ValueError(f"{len(tracks)} tracks for {len(requests)} requests: each needs one")
        loops = []
        for number, (item, track) in enumerate(zip(self._inputs.items(requests, encodings), tracks, strict=True)):
            image = track_image(track, self.mel)
            windows = self._windows([item], image.shape[1], overlap)
            begun = replace(item, start_step=self._inputs.start_step(item.request, strength, start_step))
            padded = np.zeros((self.mel.y_res, windows.columns * self.geometry.factor), np.uint8)
            padded[:, : image.shape[1]] = image
            pixels = (windows.pixels(window, self.geometry.factor) for window in range(windows.count))
            (made,) = self._chained([begun], windows, [[]], [[self._encoded(padded[:, columns]) for columns in pixels]])
            loops.append(self._long_loop(number, item, self._joined(windows, made)[:, : image.shape[1]]))
        return loops

    @torch.inference_mode()
    def invert(
        self,
        requests: Sequence[GenerateRequest],
        sources: Sequence[Source],
        encodings: Encodings | None = None,
        refinements: int = REFINEMENTS,
    ) -> Noise:
        """The noises (n, channels, height, width) from which `generate` makes the sources by the same requests, whose seeds do not matter.

        By DDIM, or Euler's method for a flow model, with `refinements` corrections of each step, each a further call of the network; 0 is
        the usual first-order inversion. A model whose scheduler clips (`clip_sample`) makes a little less of its noises than it would without.
        """
        if not 0 <= refinements <= 100:
            raise ValueError(f"refinements {refinements} is not in 0 to 100")
        items = [
            replace(item, clean=self._encoded(image, item.request.seamless), refinements=refinements)
            for item, image in zip(*self._inputs.sourced(requests, sources, encodings), strict=True)
        ]
        found = dict(self.sampler.invert(items))
        return np.stack([found[item].numpy() for item in items])

    def noise(self, requests: Sequence[GenerateRequest]) -> Noise:
        """The noises (n, channels, height, width) that the requests' seeds stand for; their widths must be the same."""
        shapes = [self._inputs.shape(self._inputs.width(self.resolved(request))) for request in requests]
        return np.stack(
            [initial_noise(request.seed, shape).numpy() for request, shape in zip(requests, shapes, strict=True)]
        )

    def interpolate(
        self, request: GenerateRequest, noises: Noise, between: int, encodings: Encodings | None = None
    ) -> Iterator[Loop]:
        """Loops along a way through key noises (k, channels, height, width), `between` more on each leg, numbered along it.

        All are made by `request`. encodings: (k, dim), interpolated linearly.
        """
        along = chain(noises, between)
        if encodings is not None:
            if len(encodings) != len(noises):
                raise ValueError(f"{len(encodings)} encodings for {len(noises)} noises: each needs one")
            place = np.linspace(0, len(noises) - 1, len(along))
            low = np.minimum(place.astype(int), len(noises) - 2)
            share = (place - low)[:, np.newaxis]
            encodings = (1 - share) * encodings[low] + share * encodings[low + 1]
        return self.generate([request] * len(along), encodings, along)

    def _encoded(self, image: Images, circular: bool = False) -> torch.Tensor:
        """A mel image as the network sees it: (channels, height, width)."""
        pixels = torch.from_numpy(to_model(image))[None, None]
        if self.vae is None:
            return pixels[0]
        with circular_time(self.vae) if circular else nullcontext():
            return encode_latents(self.vae, pixels)[0]

    def _decoded(self, samples: torch.Tensor, circular: bool = False) -> Images:
        """Samples (n, channels, height, width) -> images (n, y_res, width)."""
        if self.vae is not None:
            with circular_time(self.vae) if circular else nullcontext():
                samples = decode_latents(self.vae, samples)
            if not bool(torch.isfinite(samples).all()):
                raise FloatingPointError("the autoencoder's images are not finite: its weights are broken")
        return to_image(samples[:, 0].numpy())

    def _made(self, jobs: Iterable[_Job]) -> Iterator[Loop]:
        """Samples the jobs' items and turns what finishes into loops, a batch at a time."""
        underway: dict[Item, _Job] = {}

        def items() -> Iterator[Item]:
            for job in jobs:
                underway[job.item] = job
                yield job.item

        finished = self.sampler.sample(items())
        while ready := list(islice(finished, self.profile.batch_size)):
            ready.sort(key=lambda one: one[0].pool)
            for (_, circular), group in groupby(ready, key=lambda one: one[0].pool):
                pool = list(group)
                images = self._decoded(torch.stack([sample for _, sample in pool]), circular)
                done = [underway.pop(item) for item, _ in pool]
                for image, job in zip(images, done, strict=True):
                    if job.image is not None and job.kept is not None:
                        np.copyto(image, job.image, where=job.kept)
                audios = self.vocoder(images, [job.item.request.seed for job in done], circular=circular)
                for job, image, audio in zip(done, images, audios, strict=True):
                    yield Loop(job.item.request, image, normalise(audio), job.number)

    def _windows(self, items: Sequence[Item], columns: int, overlap: float) -> Windows:
        """The windows over `columns` pixels, of the items' one width."""
        widths = {self.geometry.width(item.request) for item in items}
        if len(widths) > 1:
            raise ValueError(f"requests of widths {sorted(widths)}: windows have one width")
        if any(item.request.seamless for item in items):
            raise ValueError("seamless requests have no end to go on from: windows are not seamless")
        return Windows.over(columns, widths.pop() if widths else self.mel.x_res, overlap, self.geometry.factor)

    def _chained(
        self,
        items: Sequence[Item],
        windows: Windows,
        made: list[list[torch.Tensor]],
        contents: list[list[torch.Tensor]] | None = None,
    ) -> list[list[torch.Tensor]]:
        """The samples of each item's windows, in batches over the items.

        made: for each item the windows that are there already, of the same number. contents: for each, what its windows are variations
        of, from the item's `start_step` and the seed's one noise; None: every window is made of noise of its own.
        """
        keep = windows.continuing(self.sampler.sides[0])
        for window in range(len(made[0]) if made else 0, windows.count):
            wanted = []
            for number, item in enumerate(items):
                clean = (
                    torch.zeros(self.sampler.shape(windows.width))
                    if contents is None
                    else contents[number][window].clone()
                )
                if window:
                    clean[..., : windows.shared] = made[number][-1][..., windows.step :]
                kept = replace(
                    item, clean=clean if window or contents is not None else None, keep=keep if window else None
                )
                wanted.append(kept if contents is not None else replace(kept, window=window))
            found = dict(self.sampler.sample(wanted))
            for number, item in enumerate(wanted):
                made[number].append(found[item])
        return made

    def _joined(self, windows: Windows, samples: list[torch.Tensor]) -> Images:
        """The image (y_res, width) of all windows' samples."""
        return windows.joined(np.concatenate([self._decoded(sample[None]) for sample in samples]), self.geometry.factor)

    def _long_loop(self, number: int, item: Item, image: Images) -> Loop:
        (audio,) = self.vocoder(image[np.newaxis], [item.request.seed])
        return Loop(item.request, image, normalise(audio), number)
