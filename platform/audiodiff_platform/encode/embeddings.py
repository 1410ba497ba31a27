"""Worker of encode that computes the embeddings of the audio files of a planned shard."""

from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from audiodiff_core.audio import AudioDecodeError, Samples
from audiodiff_core.embeddings import load_encoder
from audiodiff_core.embeddings.inputs import LONGEST_EMBEDDED_S
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_platform.audio_files import AudioItem, Inputs, Source, fetched, items, shortened, source_sha256
from audiodiff_platform.decoder import Decoder
from audiodiff_platform.mel_data.encodings import encoded_table
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.scratch import scratch_folder
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record
from audiodiff_platform.work.plan import read_shard
from audiodiff_platform.work.source_digests import record_digests


class EmbeddingsWorker:
    """A worker that embeds shards with one loaded encoder. Audio files are decoded in a child process.

    Args:
        input_dir: The URI of the input.
        output_dir: The folder of the embeddings.
        encoder: The folder or Hugging Face id of the encoder.
        encoder_digest: The digest of the encoder at the start of the job.

    Raises:
        ValueError: The encoder has changed since the start of the job.
    """

    def __init__(self, input_dir: str, output_dir: str, encoder: str, encoder_digest: str) -> None:
        self.inputs, self.output, self.decoder = Inputs(input_dir), Folder(output_dir), Decoder()
        profile = ExecutionProfile.here()
        profile.prepare_process()
        self.encoder, self.digest = load_encoder(encoder, profile.device), encoder_digest
        if (digest := self.encoder.digest) != encoder_digest:
            raise ValueError(
                f"encoder {encoder} has changed since the job began (digest {digest}, was {encoder_digest}): "
                "restore it and run the command again"
            )

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Write the embeddings of a shard, and return its commit record."""
        draft = _Draft()
        with scratch_folder() as scratch:
            sources = [source for source, _ in read_shard(self.output, shard)]
            for source, fetching in fetched(self.inputs, sources, scratch):
                if attempts.gives_up(source.key):
                    draft.failed(source.uri, attempts.reason)
                    continue
                attempts.start(source.key)
                self._embed(source, fetching, scratch, draft)
                attempts.start()
        attempts.require_ownership()
        parts, sizes = {}, {}
        if draft.vectors:
            content = encoded_table(
                list(draft.vectors), np.stack(list(draft.vectors.values())), self.encoder.name, self.digest
            )
            name = f"data/{shard:06d}.parquet"
            self.output.write(name, content)
            parts[name], sizes[name] = commits.sha256(content), len(content)
        counts = {"rows": len(draft.vectors), "failures": draft.failures, "skipped": shortened(draft.skipped)}
        return {**counts, "parts": parts, "sizes": sizes, **record_digests(self.output, shard, draft.digests)}

    def _embed(self, source: Source, fetching: "Future[Path]", scratch: Path, draft: "_Draft") -> None:
        """Add the embeddings of the audio files of a source to `draft`."""
        try:
            local = fetching.result()
            draft.digests[source.key] = source_sha256(source, local)
            for item in items(source, local, scratch, draft.skipped):
                try:
                    draft.vectors[item.name] = self._embedded(item, scratch)
                except AudioDecodeError as error:
                    draft.failed(item.name, error.reason)
        except AudioDecodeError as error:  # the source cannot be fetched, or is damaged
            draft.failed(source.uri, error.reason)

    def _embedded(self, item: AudioItem, scratch: Path) -> Samples:
        """Compute the embedding (dim,) of an audio file. Raise AudioDecodeError for an unusable file."""
        rate = self.encoder.sample_rate
        samples = self.decoder.samples(item.name, item.local, scratch / "samples", rate, LONGEST_EMBEDDED_S)
        vector: Samples = self.encoder.encode([samples], rate)[0]
        if not np.isfinite(vector).all():
            raise AudioDecodeError(item.name, "the embedding is not finite")
        return vector


@dataclass
class _Draft:
    """Results of a shard."""

    vectors: dict[str, Samples] = field(default_factory=dict)
    """Embeddings (dim,) by the name of the audio file."""
    failures: list[dict[str, str]] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    """Digests of the sources that were read, by key."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Counts of skipped members of containers, by kind."""

    def failed(self, name: str, reason: str) -> None:
        """Add an unusable audio file."""
        self.failures.append({"audio_file": name, "reason": reason})


def embedded(record: Record) -> Counts:
    """Return the progress counts of a commit record: embedded and unusable files."""
    return {"files": record["rows"], "unusable": len(record["failures"])}
