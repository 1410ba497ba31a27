"""Calls with arrays instead of references: sources, masks, noises and encodings, one per request."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline.codec import Codec
from audiodiff_core.pipeline.geometry import Geometry
from audiodiff_core.pipeline.inputs import Encodings, Inputs
from audiodiff_core.pipeline.interpolation import Noise, chain, linear_chain
from audiodiff_core.pipeline.loop import Failure, Loop
from audiodiff_core.pipeline.running import Runner, without_failures
from audiodiff_core.pipeline.sources import Audio, Mask, Source, Span, source_slice, track_image
from audiodiff_core.pipeline.task_batch import OnStep, Started
from audiodiff_core.pipeline.tasks import Loader, Task, Tasks
from audiodiff_core.sampling import Item, Sampler, initial_noise
from audiodiff_core.sampling.requests import DEFAULT_OVERLAP, DEFAULT_REFINEMENTS, MAX_REFINEMENTS, SeededRequest


class ArrayCalls:
    """Methods of LoopPipeline that take arrays."""

    mel: MelConfig
    geometry: Geometry
    sampler: Sampler
    codec: Codec
    _tasks: Tasks
    _inputs: Inputs
    _runner: Runner

    def vary(
        self,
        requests: Sequence[SeededRequest],
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
        self._inputs.require_equal("sources", len(sources), len(requests))
        started = []
        for item, source in zip(self._inputs.items(requests, encodings), sources, strict=True):
            start = self._inputs.start_step(item.request, strength, start_step)
            started.append((item, self._tasks.vary(item, self._loaded(source, item), start)))
        return self._loops(started)

    def inpaint(
        self,
        requests: Sequence[SeededRequest],
        sources: Sequence[Source],
        regenerate: Sequence[Sequence[Span] | Mask],
        start_step: int = 0,
        encodings: Encodings | None = None,
    ) -> Iterator[Loop]:
        """Regenerate part of each source to fit the rest. A part at an end of a source is outpainted.

        Outside the regenerated part, the loop holds the samples of the source, at their level.

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
        self._inputs.require_equal("masks", len(regenerate), len(requests))
        self._inputs.require_equal("sources", len(sources), len(requests))
        started = []
        for item, source, region in zip(self._inputs.items(requests, encodings), sources, regenerate, strict=True):
            own = self._loaded(source, item)
            kept = self._inputs.kept(region, item, start_step)
            started.append((item, self._tasks.inpaint(item, own, kept, start_step)))
        return self._loops(started)

    def extend(
        self,
        requests: Sequence[SeededRequest],
        duration_s: float,
        sources: Sequence[Source] | None = None,
        *,
        overlap: float = DEFAULT_OVERLAP,
        encodings: Encodings | None = None,
    ) -> list[Loop]:
        """Generate loops of any length, window by window.

        Args:
            requests: The requests. Their width is the width of a window.
            duration_s: Duration of the loops in seconds.
            sources: One source per request, with whose samples the loop begins. None begins with a generated window.
            overlap: Fraction of a window that the next window shares, in (0, 1).
            encodings: Encodings (n, dim) of a conditional model.

        Returns:
            The loops, in the order of the requests.
        """
        columns = self._inputs.columns(duration_s)
        items = self._inputs.items(requests, encodings)
        self._require_an_end(items)
        slices: list[Loader | None] = [None] * len(items)
        if sources is not None:
            self._inputs.require_equal("sources", len(sources), len(requests))
            slices = [self._loaded(source, item) for source, item in zip(sources, items, strict=True)]
        started = [
            (item, self._tasks.extend(item, source, columns, overlap))
            for item, source in zip(items, slices, strict=True)
        ]
        return sorted(self._loops(started), key=lambda loop: loop.number)

    def remix(
        self,
        requests: Sequence[SeededRequest],
        tracks: Sequence[Audio],
        strength: float | None = None,
        start_step: int | None = None,
        *,
        overlap: float = DEFAULT_OVERLAP,
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
        self._inputs.require_equal("tracks", len(tracks), len(requests))
        items = self._inputs.items(requests, encodings)
        self._require_an_end(items)
        started = []
        for item, track in zip(items, tracks, strict=True):
            start = self._inputs.start_step(item.request, strength, start_step)
            started.append((item, self._tasks.remix(item, partial(track_image, track, self.mel), start, overlap)))
        return sorted(self._loops(started), key=lambda loop: loop.number)

    def invert(
        self,
        requests: Sequence[SeededRequest],
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
        if not 0 <= refinements <= MAX_REFINEMENTS:
            raise ValueError(f"refinements {refinements} is not in 0 to {MAX_REFINEMENTS}")
        self._inputs.require_equal("sources", len(sources), len(requests))
        items = [
            replace(
                item,
                clean=self.codec.encode(self._loaded(source, item)().image, item.request.seamless),
                refinements=refinements,
            )
            for item, source in zip(self._inputs.items(requests, encodings), sources, strict=True)
        ]
        noises = dict(self.sampler.invert(items))
        return np.stack([noises[item].numpy() for item in items])

    def noise(self, requests: Sequence[SeededRequest]) -> Noise:
        """Return the initial noises (n, channels, height, width) of requests of one width."""
        shapes = [
            self._inputs.shape(self._inputs.width(self.geometry.resolved(request, self.sampler.scheduler)))
            for request in requests
        ]
        return np.stack(
            [initial_noise(request.seed, shape).numpy() for request, shape in zip(requests, shapes, strict=True)]
        )

    def interpolate(
        self, request: SeededRequest, noises: Noise, between: int, encodings: Encodings | None = None
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
            self._inputs.require_equal("encodings", len(encodings), len(noises))
            encodings = linear_chain(encodings, between)
        return without_failures(self._array_outcomes([request] * len(chained), encodings, chained))

    def _array_outcomes(
        self,
        requests: Sequence[SeededRequest],
        encodings: Encodings | Mapping[str, Encodings] | None,
        noises: Noise | None,
        on_step: OnStep | None = None,
        progress: bool = False,
    ) -> Iterator[Loop | Failure]:
        """Generate from noises and encodings, one per request."""
        if isinstance(encodings, Mapping):
            raise ValueError("encodings by reference with noises: pass one encoding per request")
        items = self._inputs.items(requests, encodings)
        if noises is not None:
            self._inputs.require_equal("noises", len(noises), len(items))
            items = [
                replace(item, noise=self._inputs.checked_noise(noise, item))
                for item, noise in zip(items, noises, strict=True)
            ]
        probe = self.sampler.batch()
        for item in items:
            probe.check(item)
        return self._run([(item, self._tasks.generate(item)) for item in items], on_step, progress)

    def _loops(self, started: Sequence[tuple[Item, Task]]) -> Iterator[Loop]:
        return without_failures(self._run(started))

    def _run(
        self, started: Sequence[tuple[Item, Task]], on_step: OnStep | None = None, progress: bool = False
    ) -> Iterator[Loop | Failure]:
        numbered = (Started(number, item.request, task) for number, (item, task) in enumerate(started))
        return self._runner.run(numbered, len(started), on_step, progress)

    def _loaded(self, source: Source, item: Item) -> Loader:
        """Decode a source at once, so that a wrong source is an error of the call."""
        own = source_slice(source, self.mel, self.geometry.width(item.request))
        return lambda: own

    @staticmethod
    def _require_an_end(items: Sequence[Item]) -> None:
        if any(item.request.seamless for item in items):
            raise ValueError("seamless requests have no end to continue from: use seamless False")
