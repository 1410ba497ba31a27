"""Sampling that its caller drives step by step, for servers: requests join and leave between the steps.

session = pipeline.session()
session.add(session.started(0, request))
while len(session):
    session.step()
    ready, failures = session.results()
    for loop in session.render(ready):
        ...  # a Loop or a Failure
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from audiodiff_core.pipeline.inputs import Encodings, Inputs, References
from audiodiff_core.pipeline.loop import Failure, Loop
from audiodiff_core.pipeline.rendering import Renderer, Rendering
from audiodiff_core.pipeline.sources import HERE, AudioFiles, Source
from audiodiff_core.pipeline.task_batch import Started, TaskBatch
from audiodiff_core.sampling import Sampler
from audiodiff_core.sampling.requests import Request


@dataclass(frozen=True)
class SessionParts:
    """Parts of a pipeline that a session uses.

    Attributes:
        sampler: The sampler.
        renderer: The renderer.
        inputs: The conversion of requests to tasks.
    """

    sampler: Sampler
    renderer: Renderer
    inputs: Inputs


class Session(TaskBatch):
    """Requests in progress in one batch, which the caller moves step by step.

    `started` and `render` can run on other threads than the other methods, which need one thread. A loop has the bytes
    that `LoopPipeline.generate` gives it.

    Args:
        parts: Parts of the pipeline.
    """

    def __init__(self, parts: SessionParts) -> None:
        super().__init__(parts.sampler.batch(), parts.renderer)
        self._parts = parts
        self._probe = parts.sampler.batch()
        profile = parts.sampler.profile
        self._stream = torch.cuda.Stream(profile.device) if profile.on_gpu else None

    def started(
        self,
        number: int,
        request: Request,
        *,
        encodings: Mapping[str, Encodings] | None = None,
        sources: Mapping[str, Source] | None = None,
        files: AudioFiles = HERE,
    ) -> Started:
        """Check a request and create its task, for `add`.

        Args:
            number: Number of the request, which its results hold.
            request: The request.
            encodings: Encodings (dim,) by reference.
            sources: Sources by reference. Any other reference is a file.
            files: Decoding of files, which happens at `add`, or between steps.

        Raises:
            ValueError: If the model does not support the request.
        """
        references = References(sources or {}, encodings or {}, files)
        item, task = self._parts.inputs.task(request, references, self._probe)
        return Started(number, item.request, task)

    def render(self, ready: Sequence[Rendering]) -> Iterator[Loop | Failure]:
        """Yield the loops of results."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            yield from self._parts.renderer.render(ready, self._parts.sampler.profile)
