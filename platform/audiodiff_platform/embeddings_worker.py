"""What each worker of encode does for embeddings: a planned shard's audio files -> a vector of each, then its commit."""

import tempfile
from pathlib import Path

import numpy as np

from audiodiff_core.audio import AudioDecodeError, PeakMeter, Samples, decode
from audiodiff_core.encoder import load_encoder
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.slices import CANCELLED, SILENT, Piece
from audiodiff_platform import commits
from audiodiff_platform.audio_files import Inputs, Source, items
from audiodiff_platform.encodings import encoded_table
from audiodiff_platform.source_digests import record_digests
from audiodiff_platform.storage import Folder
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record
from audiodiff_platform.work.plan import read_shard


class EmbeddingsWorker:
    """A worker that embeds shards with one loaded encoder."""

    def __init__(self, input_dir: str, output_dir: str, encoder: str, encoder_digest: str) -> None:
        self.inputs, self.output = Inputs(input_dir), Folder(output_dir)
        profile = ExecutionProfile.here()
        profile.prepare_process()
        self.encoder, self.digest = load_encoder(encoder, profile.device), encoder_digest
        if (found := self.encoder.digest) != encoder_digest:
            raise ValueError(f"encoder {encoder} has changed since the job began: digest {found}, it was {encoder_digest}")

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Write the embeddings of a shard."""
        vectors: dict[str, Samples] = {}
        failures: list[dict[str, str]] = []
        digests: dict[str, str] = {}
        with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
            for source, _ in read_shard(self.output, shard):
                if attempts.gives_up(source.uri):
                    failures.append({"audio_file": source.uri, "reason": attempts.reason})
                    continue
                attempts.start(source.uri)
                self._embed(source, Path(scratch), digests, vectors, failures)
                attempts.start()
        attempts.require_ownership()
        parts, sizes = {}, {}
        if vectors:
            content = encoded_table(list(vectors), np.stack(list(vectors.values())), self.encoder.name, self.digest)
            name = f"data/{shard:06d}.parquet"
            self.output.write(name, content)
            parts[name], sizes[name] = commits.sha256(content), len(content)
        sources = record_digests(self.output, shard, digests)
        return {"rows": len(vectors), "failures": failures, "parts": parts, "sizes": sizes, **sources}

    def _embed(
        self, source: Source, scratch: Path, digests: dict[str, str], vectors: dict[str, Samples], failures: list[dict[str, str]]
    ) -> None:
        """Add the digest of a source to `digests`, the vectors of its files to `vectors`, the reasons for missing vectors to `failures`."""
        try:
            local = self.inputs.fetch(source, scratch)
            digests[source.uri] = commits.file_sha256(local)
            for item in items(source, local, scratch):
                try:
                    vectors[item.name] = self._embedded(item.local)
                except AudioDecodeError as error:
                    failures.append({"audio_file": item.name, "reason": error.reason})
            if local.parent == scratch:
                local.unlink()
        except AudioDecodeError as error:  # it cannot be fetched, or not be read on
            failures.append({"audio_file": source.uri, "reason": error.reason})

    def _embedded(self, local: Path) -> Samples:
        """Compute the vector (dim,) of an audio file. Raises AudioDecodeError for unusable audio, also for more than `decode` takes at once."""
        rate, meter = self.encoder.sample_rate, PeakMeter()
        whole = Piece.of(0, 0, decode(local, rate, meter=meter), rate, meter)
        if whole.is_silent:
            raise AudioDecodeError(str(local), CANCELLED if whole.is_cancelled else SILENT)
        vector: Samples = self.encoder.encode([whole.samples], rate)[0]
        if not np.isfinite(vector).all():
            raise AudioDecodeError(str(local), "its embedding is not finite")
        return vector


def embedded(record: Record) -> Counts:
    """Count the embedded and the unusable files of a shard."""
    return {"files": record["rows"], "unusable": len(record["failures"])}
