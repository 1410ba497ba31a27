"""Encoding deployment: replicas that embed audio and texts, in batches, with the arithmetic of the job `encode`."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ray import serve as ray_serve

from audiodiff_core.audio import AudioDecodeError, Samples
from audiodiff_core.embeddings import Embeddings, Encoder, load_encoder
from audiodiff_core.embeddings.clap import ClapEncoder
from audiodiff_core.embeddings.inputs import ENCODER_BATCH_SIZE
from audiodiff_core.pipeline.conditions import no_text_side
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_platform.serve.calls import EncoderFacts, Vector
from audiodiff_platform.serve.errors import Problem
from audiodiff_platform.serve.exposition import ReplicaMetrics
from audiodiff_platform.serve.metrics import EncodingMetrics
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.serve.uploads import UploadDecoder

LONGEST_UPLOAD_S = 600.0
"""Longest audio to embed. The samples of a batch are in memory: 115 MB each at 48 kHz."""
BATCH_WAIT_S = 0.005
DECODED_AT_ONCE = 2 * ENCODER_BATCH_SIZE


class Encoding:
    """Replica that embeds audio and texts.

    Args:
        options: Options of the server.
        encoders: The served encoders.

    Raises:
        ValueError: An encoder has changed since the server was started.
    """

    def __init__(self, options: ServeOptions, encoders: tuple[EncoderFacts, ...]) -> None:
        self._profile = ExecutionProfile.here(device="cpu")
        self._profile.prepare_process()
        self._encoders = {facts.name: _loaded(facts) for facts in encoders}
        self._uploads = UploadDecoder(options.max_wait_s, options.longest_track_s)
        self._network = ThreadPoolExecutor(1, "encode")
        self._decoded = asyncio.Semaphore(DECODED_AT_ONCE)
        self._metrics = EncodingMetrics()
        self._idle = asyncio.Event()
        self._idle.set()

    async def encode(self, encoder: str, item: bytes | str) -> Vector | Problem:
        """Return the embedding of an audio file or of a text, or the reason why there is none.

        Args:
            encoder: Name of a served encoder.
            item: Content of an audio file, or a text for an encoder with a text side.
        """
        outcome = await self._outcome(encoder, item)
        self._metrics.ended(encoder, outcome.code if isinstance(outcome, Problem) else "encoding")
        return outcome

    async def metrics(self) -> ReplicaMetrics:
        """Return the metrics of the replica."""
        return ReplicaMetrics.here(self._metrics.families())

    async def _outcome(self, encoder: str, item: bytes | str) -> Vector | Problem:
        if isinstance(item, str):
            return await self._vector(encoder, item)
        async with self._decoded:
            began, rate = time.monotonic(), self._encoders[encoder].sample_rate
            try:
                samples = await self._uploads.whole(item, rate, LONGEST_UPLOAD_S)
            except AudioDecodeError as error:
                return Problem(422, error.reason, "undecodable_audio")
            self._metrics.decoded(encoder, time.monotonic() - began, len(samples) / rate)
            return await self._vector(encoder, samples)

    async def _vector(self, encoder: str, item: Samples | str) -> Vector | Problem:
        # Ray Serve fills no batch while another runs: it makes one of each item that comes meanwhile.
        while not self._idle.is_set():
            await self._idle.wait()
        outcome: Vector | Problem = await self._vectors((encoder, item))
        return outcome

    @ray_serve.batch(max_batch_size=ENCODER_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_S)
    async def _vectors(self, items: list[tuple[str, Samples | str]]) -> Any:
        """Embed the items of a batch, each by its encoder."""
        self._idle.clear()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._network, self._embedded, items)
        finally:
            self._idle.set()

    def _embedded(self, items: Sequence[tuple[str, Samples | str]]) -> list[Vector | Problem]:
        began = time.monotonic()
        results: list[Vector | Problem] = [Problem(422, "the embedding is not finite", "not_finite")] * len(items)
        with self._profile.applied():
            for name, encoder in self._encoders.items():
                own = {place: item for place, (wanted, item) in enumerate(items) if wanted == name}
                for place, vector in _vectors_of(encoder, own):
                    if np.isfinite(vector).all():
                        results[place] = tuple(map(float, vector))
        self._metrics.embedded(time.monotonic() - began, len(items))
        return results


def _vectors_of(encoder: Encoder, items: Mapping[int, Samples | str]) -> Iterator[tuple[int, Embeddings]]:
    """Yield the embedding of each audio and each text with its place."""
    audios = {place: item for place, item in items.items() if not isinstance(item, str)}
    if audios:
        yield from zip(audios, encoder.encode(list(audios.values()), encoder.sample_rate), strict=True)
    for place, item in items.items():
        if isinstance(item, str):
            assert isinstance(encoder, ClapEncoder), "the ingress asks no other encoder to embed texts"
            yield place, encoder.encode_text([item])[0]


def encoder_facts(name: str, path: str) -> EncoderFacts:
    """Load an encoder, and return what the server tells about it.

    Raises:
        ValueError: The encoder cannot be loaded.
    """
    encoder = load_encoder(path)
    return EncoderFacts(name, path, encoder.digest, encoder.dim, no_text_side(encoder) is None)


def _loaded(facts: EncoderFacts) -> Encoder:
    encoder = load_encoder(facts.path)
    if encoder.digest != facts.digest:
        raise ValueError(
            f"encoder {facts.path} has changed since the server was started (digest {encoder.digest}, "
            f"was {facts.digest}): restore it, or deploy again"
        )
    return encoder
