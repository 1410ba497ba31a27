"""Generation of loops from requests of any kind."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from audiodiff_core.checkpoint import Model, ModelRecord, load_model, save_model
from audiodiff_core.embeddings import Encoder
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline.array_calls import ArrayCalls
from audiodiff_core.pipeline.codec import Codec, placed_vae
from audiodiff_core.pipeline.conditions import CallEmbeddings, ModelEncoder
from audiodiff_core.pipeline.geometry import Geometry, P
from audiodiff_core.pipeline.inputs import Encodings, Inputs, References
from audiodiff_core.pipeline.interpolation import Noise
from audiodiff_core.pipeline.loop import Failure, Loop
from audiodiff_core.pipeline.rendering import Renderer
from audiodiff_core.pipeline.running import Runner, without_failures
from audiodiff_core.pipeline.session import Session, SessionParts
from audiodiff_core.pipeline.sources import HERE, AudioFiles, Source
from audiodiff_core.pipeline.task_batch import OnStep, Started
from audiodiff_core.pipeline.tasks import Tasks
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Sampler
from audiodiff_core.sampling.conditions import no_encoder
from audiodiff_core.sampling.requests import Request
from audiodiff_core.vocoder import GriffinLim, Vocoder, require_mel

Profile = ExecutionProfile | Literal["interactive"]


class LoopPipeline(ArrayCalls):
    """Pipeline for generation of loops with a trained model.

    A sample is the input of the network: a mel image, or the latent of a mel image. The pipeline keeps no state between
    calls. It works in batches, but the bytes of a loop do not depend on the other loops. The networks that are passed
    in are copied.

    `generate` takes requests of any kind. The other methods take arrays instead of references: one source, mask or
    encoding per request. All methods raise a ValueError that names a wrong argument and its value. A conditional model
    without encodings predicts unconditionally.

    Args:
        unet: The denoising network. The model is conditional if the network's configuration has `cross_attention_dim`.
        scheduler: The diffusers scheduler that is saved with the model.
        mel: The mel configuration of the images.
        profile: The execution profile. "interactive" selects, for each call, all cores and the smallest of the batch
            sizes 1, 4, 8 and 32 that takes all requests. Each loop records the profile that was used.
        vocoder: The vocoder. None selects GriffinLim.
        vae: The AutoencoderKL of a latent model. None for a model that works on images.
        device: Torch device of the interactive profile. None selects the GPU of this process, or else the CPU.
        model_digest: Digest of the model for the tags of files, or None for networks that were not loaded.
        record: Record of the model's origin, which states its conditions and its encoder, or None.
        encoder: As in `of`.

    Attributes:
        geometry: Image and sample sizes of the model.
        mel: The mel configuration.
        vocoder: The vocoder.
        sampler: The sampler.
        codec: The converter between mel images and samples of the network.

    Raises:
        ValueError: If the parts do not fit each other.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        mel: MelConfig,
        profile: Profile,
        vocoder: Vocoder | None = None,
        *,
        vae: Any = None,
        device: str | None = None,
        model_digest: str | None = None,
        record: ModelRecord | None = None,
        encoder: Encoder | str | None = None,
    ) -> None:
        self.is_interactive = profile == "interactive"
        if isinstance(profile, str):
            profile = ExecutionProfile.interactive(device=device)
        self.geometry = Geometry.of(unet, vae, mel)
        self.mel = mel
        self.vocoder = vocoder or GriffinLim(mel, profile.device)
        require_mel(self.vocoder, mel)
        self.sampler = Sampler(unet, scheduler, profile)
        self._parts = unet, vae
        self._record, self._model_digest = record, model_digest
        conditions = None if record is None else record.conditions
        reason = no_encoder(self.geometry.encoding_dim, conditions.names if conditions else ())
        if encoder is not None and reason:
            raise ValueError(f"encoder {encoder if isinstance(encoder, str) else encoder.name}: {reason}")
        encoded_dim = None if reason else self.geometry.encoding_dim
        self._encoder = ModelEncoder(record, encoder, encoded_dim, profile.device)
        self.codec = Codec(None if vae is None else placed_vae(vae, profile), profile)
        self._tasks = Tasks(self.geometry, self.codec)
        self._inputs = Inputs(self.geometry, scheduler, self._tasks, conditions)
        self._renderer = Renderer(self.codec, self.vocoder, self.geometry, model_digest)
        self._runner = Runner(self.sampler, self._renderer, self.is_interactive)

    @classmethod
    def of(cls, model: Model, profile: Profile, encoder: Encoder | str | None = None) -> "LoopPipeline":
        """Create a pipeline that generates loops with a model.

        Args:
            model: The parts of the model.
            profile: The execution profile.
            encoder: The encoder of a conditional model, for requests with `like` or `prompt`: an encoder, or a name for
                `load_encoder`. None loads the encoder that is recorded with the model, for the first such request.
        """
        parts: dict[str, Any] = {"vae": model.vae, "model_digest": model.digest, "record": model.record}
        return cls(model.unet, model.scheduler, model.mel, profile, **parts, encoder=encoder)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, profile: Profile | None = None, encoder: Encoder | str | None = None
    ) -> "LoopPipeline":
        """Load a model as a pipeline.

        Args:
            source: A local folder, an fsspec URI, or a Hugging Face id (OWNER/NAME), as in `load_model`.
            profile: The execution profile. None selects that of jobs and servers, with which the bytes are theirs.
            encoder: As in `of`.

        Raises:
            CheckpointError: As `load_model`.
        """
        return cls.of(load_model(source), profile or ExecutionProfile.here(), encoder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model to a folder that `from_pretrained` and diffusers load."""
        unet, vae = self._parts
        record = self._record or ModelRecord(recipe={}, data_digest="unknown", metrics={})
        save_model(folder, unet, self.sampler.scheduler, self.mel, record, vae=vae)

    @property
    def profile(self) -> ExecutionProfile:
        """The execution profile. Interactive calls may use a smaller batch size."""
        return self.sampler.profile

    @property
    def sampling_s(self) -> float:
        """Seconds that `generate` and `outcomes` have spent in steps of the sampler."""
        return self._runner.sampling_s

    @property
    def conditional(self) -> bool:
        """True if the model takes encodings."""
        return self.geometry.encoding_dim is not None

    def to(self, device: str | torch.device) -> "LoopPipeline":
        """Return a pipeline of the same model on another device. Its vocoder is GriffinLim.

        On a device of the same kind, the profile is the same. On another kind, it is the profile of jobs and servers.

        Args:
            device: A torch device, such as cpu, cuda:1 or mps.
        """
        unet, vae = self._parts
        there = ExecutionProfile.here(compiled=self.profile.compiled, device=str(device))
        if there.kind == self.profile.kind:
            there = self.profile.model_copy(update={"device": there.device})
        profile: Profile = "interactive" if self.is_interactive else there
        options = {"vae": vae, "device": str(device), "model_digest": self._model_digest, "record": self._record}
        moved = LoopPipeline(unet, self.sampler.scheduler, self.mel, profile, **options)
        moved._encoder = replace(self._encoder, device=str(device))
        return moved

    def resolved(self, request: P) -> P:
        """Return a copy of the request with the default scheduler, number of steps and width filled in.

        Raises:
            ValueError: If the model does not support the request.
        """
        return self.geometry.resolved(request, self.sampler.scheduler)

    def __call__(
        self, requests: Sequence[Request] | None = None, *, count: int = 1, seed: int = 0, **parameters: Any
    ) -> list[Loop]:
        """Generate loops, with a progress bar.

        Args:
            requests: The requests. None makes `count` requests for loops from noise.
            count: Number of loops.
            seed: Seed of the first loop. The seeds of the following loops count up from it.
            **parameters: Fields of GenerateRequest.

        Returns:
            The loops, in the order of the requests.
        """
        if requests is None:
            requests = [GenerateRequest(seed=seed + number, **parameters) for number in range(count)]
        elif parameters:
            raise ValueError(f"{', '.join(parameters)}: set them in the requests")
        return sorted(self.generate(requests, progress=True), key=lambda loop: loop.number)

    def generate(
        self,
        requests: Iterable[Request],
        encodings: Encodings | Mapping[str, Encodings] | None = None,
        noises: Noise | None = None,
        *,
        sources: Mapping[str, Source] | None = None,
        files: AudioFiles = HERE,
        on_step: OnStep | None = None,
        progress: bool = False,
    ) -> Iterator[Loop]:
        """Generate the loops of requests of any kind.

        The requests of a sequence are checked at the call. Those of an iterator are checked when they are consumed.

        Args:
            requests: The requests. An iterator may be unlimited in number. A request is consumed only when batch slots
                are free.
            encodings: Encodings (n, dim), one per request, or encodings (dim,) by reference.
            noises: Initial noises (n, channels, height, width) from `noise`, `invert` or `slerp`, in the shape of the
                samples. None draws them from the seeds.
            sources: Sources by reference. Any other reference is a path or a URI.
            files: Decoding of paths and URIs. By default, this process decodes them.
            on_step: Called after every step for each loop in progress.
            progress: Whether to show a progress bar.

        Yields:
            The loops, in the order in which they finish.

        Raises:
            FloatingPointError: If a network returned NaN or infinity, after all other loops have been yielded.
            ValueError: If a request does not fit the model, or if a source cannot be decoded.
            OSError: If a source cannot be read.
        """
        return without_failures(
            self.outcomes(requests, encodings, noises, sources=sources, files=files, on_step=on_step, progress=progress)
        )

    def outcomes(
        self,
        requests: Iterable[Request],
        encodings: Encodings | Mapping[str, Encodings] | None = None,
        noises: Noise | None = None,
        *,
        sources: Mapping[str, Source] | None = None,
        files: AudioFiles = HERE,
        on_step: OnStep | None = None,
        progress: bool = False,
    ) -> Iterator[Loop | Failure]:
        """Generate as `generate`, and yield a failed request as a Failure.

        Args:
            requests: As `generate`.
            encodings: As `generate`.
            noises: As `generate`.
            sources: As `generate`.
            files: As `generate`.
            on_step: As `generate`.
            progress: As `generate`.
        """
        if noises is not None or not (encodings is None or isinstance(encodings, Mapping)):
            return self._array_outcomes(list(requests), encodings, noises, on_step, progress)
        embeddings = CallEmbeddings(self._encoder, files)
        references = References(sources or {}, encodings if isinstance(encodings, Mapping) else {}, files, embeddings)
        probe = self.sampler.batch()
        count = None
        if isinstance(requests, Sequence):
            count = len(requests)
            embeddings.add([condition for request in requests if (condition := request.condition)])
            for request in requests:
                self._inputs.task(request, references, probe)[1].close()

        def started() -> Iterator[Started | Failure]:
            for number, request in enumerate(requests):
                try:
                    item, task = self._inputs.task(request, references, probe)
                except ValueError as error:
                    yield Failure(request, number, error)
                else:
                    yield Started(number, item.request, task)

        return self._runner.run(started(), count, on_step, progress)

    def session(self) -> Session:
        """Return an empty session, in which the caller moves requests step by step."""
        return Session(SessionParts(self.sampler, self._renderer, self._inputs))


def load_pipeline(
    source: str | Path, profile: Profile | None = None, encoder: Encoder | str | None = None
) -> LoopPipeline:
    """Load a model as a pipeline that generates loops. See `LoopPipeline.from_pretrained`."""
    return LoopPipeline.from_pretrained(source, profile, encoder)
