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
from audiodiff_platform.in_hand import WORKERS_LOST_AT_MOST, InHand
from audiodiff_platform.plan import read_shard
from audiodiff_platform.source_digests import record_digests
from audiodiff_platform.storage import Folder


class EmbeddingsWorker:
    """Embeds shards with one loaded encoder; lives in an actor."""

    def __init__(self, input_dir: str, output_dir: str, encoder: str, encoder_digest: str) -> None:
        self.inputs, self.output = Inputs(input_dir), Folder(output_dir)
        profile = ExecutionProfile.here()
        profile.prepare_process()
        self.encoder, self.digest = load_encoder(encoder, profile.device), encoder_digest
        if (found := self.encoder.digest) != encoder_digest:
            raise ValueError(f"encoder {encoder} has changed since the job began: digest {found}, it was {encoder_digest}")

    def shard(self, shard: int) -> dict[str, int]:
        """Writes the shard's part and commits it; says how many files gave an embedding and how many could not be used."""
        found: dict[str, Samples] = {}
        failures: list[dict[str, str]] = []
        digests: dict[str, str] = {}
        in_hand = InHand(self.output, shard)
        try:
            with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
                for source, _ in read_shard(self.output, shard):
                    if in_hand.gives_up(source.uri):
                        failures.append({"audio_file": source.uri, "reason": f"ended {WORKERS_LOST_AT_MOST} workers that read it"})
                        continue
                    in_hand.take(source.uri)
                    self._embed(source, Path(scratch), digests, found, failures)
        finally:  # an error is no death
            in_hand.take(None)
        parts = {}
        if found:
            content = encoded_table(list(found), np.stack(list(found.values())), self.encoder.name, self.digest)
            name = f"data/{shard:06d}.parquet"
            self.output.write(name, content)
            parts[name] = commits.sha256(content)
        sources = record_digests(self.output, shard, digests)
        commits.commit(self.output, shard, {"rows": len(found), "failures": failures, "parts": parts, **sources})
        return {"shard": shard, "files": len(found), "unusable": len(failures)}

    def _embed(
        self, source: Source, scratch: Path, digests: dict[str, str], found: dict[str, Samples], failures: list[dict[str, str]]
    ) -> None:
        """Add a source's digest to `digests`, the vectors of its files to `found`, and why there is none to `failures`."""
        try:
            local = self.inputs.fetch(source, scratch)
            digests[source.uri] = commits.file_sha256(local)
            for item in items(source, local, scratch):
                try:
                    found[item.name] = self._embedded(item.local)
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
