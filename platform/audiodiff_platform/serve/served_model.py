"""A served model: its pipeline, its threads, and what it says about a result."""

import hashlib
import itertools
import json
import time
from typing import Any

from audiodiff_core.audio import MEDIA_TYPES, Samples
from audiodiff_core.checkpoint import load_model
from audiodiff_core.loops import level_db, seam_score
from audiodiff_core.mel.png import encode_png
from audiodiff_core.pipeline import Loop, LoopPipeline
from audiodiff_core.pipeline.sources import Audio as AudioSource
from audiodiff_core.pipeline.sources import source_slice
from audiodiff_core.pipeline.task_batch import Started
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_core.sampling.requests import Request
from audiodiff_platform.serve.batch_thread import BatchThread
from audiodiff_platform.serve.calls import Audio, Call, ModelFacts, Vector
from audiodiff_platform.serve.metrics import ModelMetrics
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.serve.uploads import DecodedUploads


class ServedModel:
    """A loaded model that generates loops.

    Args:
        facts: Facts of the model when the server was started.
        profile: The execution profile.
        options: Options of the server.
        metrics: Metrics of the model.

    Raises:
        ValueError: The model has changed since.
    """

    def __init__(
        self, facts: ModelFacts, profile: ExecutionProfile, options: ServeOptions, metrics: ModelMetrics
    ) -> None:
        model = load_model(facts.path)
        if model.digest != facts.digest:
            raise ValueError(
                f"model {facts.path} has changed since the server was started (digest {model.digest}, "
                f"was {facts.digest}): restore it, or deploy again"
            )
        self.facts, self.pipeline = facts, LoopPipeline.of(model, profile)
        self._numbers = itertools.count()
        list(self.pipeline.generate([GenerateRequest(steps=1)]))  # compiles, and imports what the first loop needs
        queue_slots = options.queue_batches * profile.batch_size
        self.metrics = metrics
        self.thread = BatchThread(self.pipeline, queue_slots, options.max_wait_s, metrics)

    def __del__(self) -> None:
        """End the threads after the requests in progress, when the replica unloads the model."""
        if hasattr(self, "thread"):
            self.thread.close()

    def started(self, call: Call, files: DecodedUploads) -> Started:
        """Check a request and create its task.

        Raises:
            ValueError: If the model does not support the request.
        """
        return self.thread.session.started(next(self._numbers), call.request, files=files)

    def etag(self, call: Call, request: Request) -> str:
        """Return the entity tag of a result, which is a function of everything that determines its bytes."""
        determining = {
            "request": request.model_dump(mode="json", exclude={"id"}),
            "uploads": {name: hashlib.sha256(content).hexdigest() for name, content in call.uploads.items()},
            "model": self.facts.digest,
            "profile": self.pipeline.profile.record(),
            "format": call.format,
        }
        return f'"{hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:32]}"'

    def latents(self, samples: Samples) -> tuple[Vector, ...]:
        """Compute the latent of each slice of an audio file. Slices have the width of a loop of default duration.

        Args:
            samples: The samples. A file that is shorter than a slice is padded with silence.
        """
        mel, rate = self.pipeline.mel, self.facts.sample_rate
        count = max(1, len(samples) // (mel.x_res * mel.hop_length - 1))
        slices = (source_slice(AudioSource(samples, rate, number), mel, mel.x_res) for number in range(count))
        return tuple(tuple(self.pipeline.codec.encode(one.image).flatten().tolist()) for one in slices)

    def audio(self, call: Call, etag: str, loop: Loop, seconds: dict[str, float]) -> Audio:
        """Make the audio file of a loop."""
        began, rate = time.monotonic(), self.facts.sample_rate
        file = loop.measured(rate)
        content = file.content(call.format)
        provenance: dict[str, Any] = {
            "model": self.facts.name,
            "model_digest": self.facts.digest,
            "request": loop.request.model_dump(mode="json", exclude_none=True),
            "profile": self.pipeline.profile.record(),
            "format": call.format,
            "sample_rate": rate,
            "duration_s": len(loop.audio) / rate,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        if call.measured:
            provenance |= {
                "tempo_bpm": file.tempo.bpm,
                "tempo_confidence": file.tempo.confidence,
                "key": file.key.name,
                "seam_score": seam_score(loop.audio, rate),
                "level_db": level_db(loop.audio),
            }
        png = encode_png(loop.image) if call.preview_every else None
        seconds = {**seconds, "encode": time.monotonic() - began}
        self.metrics.finished(seconds, provenance["duration_s"])
        return Audio(content, MEDIA_TYPES[call.format], etag, provenance, seconds, png)
