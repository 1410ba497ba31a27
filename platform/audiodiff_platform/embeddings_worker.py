"""What each worker of encode does for embeddings: a planned shard's audio files -> a vector of each, then its commit."""

import tempfile
from pathlib import Path

import numpy as np

from audiodiff_core.audio import AudioDecodeError, Samples, stream
from audiodiff_core.encoder import load_encoder
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_platform import commits
from audiodiff_platform.audio_files import Inputs, Source, items
from audiodiff_platform.encodings import encoded_table
from audiodiff_platform.storage import Folder
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record
from audiodiff_platform.work.plan import read_shard

SECONDS_AT_MOST = 4 * 3_600  # of a file, whose samples are in memory


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
        with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
            for source, _ in read_shard(self.output, shard):
                if attempts.gives_up(source.uri):
                    failures.append({"audio_file": source.uri, "reason": attempts.reason})
                    continue
                attempts.start(source.uri)
                self._embed(source, Path(scratch), vectors, failures)
        parts = {}
        if vectors:
            content = encoded_table(list(vectors), np.stack(list(vectors.values())), self.encoder.name, self.digest)
            name = f"data/{shard:06d}.parquet"
            self.output.write(name, content)
            parts[name] = commits.sha256(content)
        return {"rows": len(vectors), "failures": failures, "parts": parts}

    def _embed(self, source: Source, scratch: Path, vectors: dict[str, Samples], failures: list[dict[str, str]]) -> None:
        """Add the vectors of the files of a source to `vectors`, and the reason for a missing vector to `failures`."""
        try:
            local = self.inputs.fetch(source, scratch)
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
        """The vector (dim,) of an audio file. Raises AudioDecodeError where it cannot be used."""
        rate = self.encoder.sample_rate
        blocks, count = [], 0
        for block in stream(local, rate):
            blocks.append(block)
            count += len(block)
            if count > SECONDS_AT_MOST * rate:
                raise AudioDecodeError(str(local), f"longer than {SECONDS_AT_MOST / 3_600:g} hours")
        vector: Samples = self.encoder.encode([np.concatenate(blocks)], rate)[0]
        if not np.isfinite(vector).all():
            raise AudioDecodeError(str(local), "its embedding is not finite")
        return vector


def embedded(record: Record) -> Counts:
    """Count the embedded and the unusable files of a shard."""
    return {"files": record["rows"], "unusable": len(record["failures"])}
