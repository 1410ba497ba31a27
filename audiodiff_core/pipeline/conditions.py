"""Embedding of conditions, the audio (`like`) and texts (`prompt`) of requests, by the encoder of a model.

The embedding of audio is the one that the job `encode` computes: of the whole file, at the sample rate of the encoder.
It depends neither on the other conditions nor on the execution profile of the pipeline.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np

from audiodiff_core.audio import AudioDecodeError, Samples
from audiodiff_core.checkpoint import ModelRecord
from audiodiff_core.embeddings import Embeddings, Encoder, load_encoder
from audiodiff_core.embeddings.clap import ClapEncoder
from audiodiff_core.embeddings.inputs import ENCODER_BATCH_SIZE, LONGEST_EMBEDDED_S
from audiodiff_core.pipeline.sources import AudioFiles
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.sampling.conditions import Condition

MAX_BATCH_S = 600.0
"""Duration of decoded audio in memory, in seconds, from which a batch is embedded before it is full."""
MAX_KEPT = 1_024
"""Number of embeddings that a call keeps for requests of an iterator."""

Embedded = Embeddings | ValueError
"""An embedding (dim,), or the error that describes why there is none."""


def model_encoder(record: ModelRecord | None, encoder: Encoder | str | None, dim: int, device: str = "cpu") -> Encoder:
    """Return the encoder of a model, after a check against what is recorded with the model.

    Args:
        record: The record of the model, or None.
        encoder: An encoder, or a name for `load_encoder`. None selects the recorded encoder.
        dim: Number of values of an encoding of the model.
        device: Torch device on which an encoder is loaded.

    Raises:
        ValueError: If the encoder is not known, cannot be loaded, or is not the encoder of the model.
    """
    stated = None if record is None else record.encoder
    if encoder is None:
        if stated is None:
            raise ValueError("the model does not record its encoder: set encoder to the encoder of its training")
        try:
            encoder = load_encoder(stated.name, device)
        except ValueError as error:
            raise ValueError(
                f"the encoder of the model, {stated.name} with digest {stated.digest}, cannot be loaded: "
                f"set encoder to its folder or Hugging Face id ({error})"
            ) from error
    elif isinstance(encoder, str):
        encoder = load_encoder(encoder, device)
    if stated is not None and encoder.digest != stated.digest:
        raise ValueError(
            f"encoder {encoder.name} has the digest {encoder.digest}, the encoder of the model, {stated.name}, has "
            f"{stated.digest}: set encoder to the encoder of the training"
        )
    if encoder.dim != dim:
        raise ValueError(
            f"encoder {encoder.name} computes {encoder.dim} values, the model takes {dim}: "
            "set encoder to the encoder of the training"
        )
    return encoder


def no_text_side(encoder: Encoder) -> str | None:
    """Return the reason why an encoder cannot embed prompts, or None if it can."""
    return None if isinstance(encoder, ClapEncoder) else f"the model's encoder {encoder.name} has no text side"


def embedded(
    encoder: Encoder, conditions: Iterable[Condition], files: AudioFiles
) -> Iterator[tuple[Condition, Embedded]]:
    """Embed conditions in batches.

    Args:
        encoder: The encoder.
        conditions: The conditions.
        files: Decoding of the audio files.

    Yields:
        Each condition with its embedding (dim,), or with the error of a condition that cannot be embedded.

    Raises:
        OSError: If storage fails.
    """
    remaining = iter(conditions)
    while batch := list(islice(remaining, ENCODER_BATCH_SIZE)):
        waiting: dict[Condition, Samples] = {}
        for condition in batch:
            if condition.field == "prompt":
                yield condition, _of_text(encoder, condition)
                continue
            try:
                waiting[condition] = files.track(condition.text, encoder.sample_rate, LONGEST_EMBEDDED_S)
            except AudioDecodeError as error:
                yield condition, ValueError(f"like {condition.text}: {error.reason}")
            if sum(map(len, waiting.values())) > MAX_BATCH_S * encoder.sample_rate:
                yield from _of_audio(encoder, waiting)
                waiting = {}
        if waiting:
            yield from _of_audio(encoder, waiting)


def _of_text(encoder: Encoder, condition: Condition) -> Embedded:
    if not isinstance(encoder, ClapEncoder):
        return ValueError(f"prompt {condition.text}: {no_text_side(encoder)}")
    return _finite(condition, encoder.encode_text([condition.text])[0])


def _of_audio(encoder: Encoder, audios: dict[Condition, Samples]) -> Iterator[tuple[Condition, Embedded]]:
    vectors = encoder.encode(list(audios.values()), encoder.sample_rate)
    for condition, vector in zip(audios, vectors, strict=True):
        yield condition, _finite(condition, vector)


def _finite(condition: Condition, vector: Embeddings) -> Embedded:
    if np.isfinite(vector).all():
        return vector
    return ValueError(f"{condition.field} {condition.text}: the embedding is not finite")


@dataclass
class ModelEncoder:
    """The encoder of a model, which is loaded for the first condition.

    Args:
        record: The record of the model, or None.
        encoder: An encoder, or a name for `load_encoder`. None selects the recorded encoder.
        dim: Number of values of an encoding, or None for a model that takes no embeddings.
        device: Torch device of the encoder.
    """

    record: ModelRecord | None
    encoder: Encoder | str | None
    dim: int | None
    device: str

    @cached_property
    def loaded(self) -> Encoder:
        """The encoder. Raises ValueError if it cannot be used. See `model_encoder`."""
        assert self.dim is not None, "the model has no encoder"
        return model_encoder(self.record, self.encoder, self.dim, self.device)

    def embedded(self, conditions: Iterable[Condition], files: AudioFiles) -> Iterator[tuple[Condition, Embedded]]:
        """Embed conditions with the arithmetic of jobs. See `embedded`."""
        with ExecutionProfile.here(device=self.device).applied():
            yield from embedded(self.loaded, conditions, files)


@dataclass
class CallEmbeddings:
    """Embeddings of the conditions of a call, each computed once.

    Args:
        encoder: The encoder of the model.
        files: Decoding of the audio files.
    """

    encoder: ModelEncoder
    files: AudioFiles
    _known: OrderedDict[Condition, Embedded] = field(default_factory=OrderedDict)

    def add(self, conditions: Sequence[Condition]) -> None:
        """Embed the conditions of all requests of a call in batches."""
        if conditions and self.encoder.dim is not None:
            self._known.update(self.encoder.embedded(dict.fromkeys(conditions), self.files))

    def __call__(self, condition: Condition) -> Embeddings:
        """Return the embedding (dim,) of a condition.

        Raises:
            ValueError: If the condition cannot be embedded, or the encoder of the model cannot be used.
        """
        if condition not in self._known:
            while len(self._known) >= MAX_KEPT:
                self._known.popitem(last=False)
            self._known.update(self.encoder.embedded([condition], self.files))
        outcome = self._known[condition]
        if isinstance(outcome, ValueError):
            raise outcome
        return outcome
