"""The worker of the evaluate job, which embeds the slices of audio files or of a mel dataset."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from audiodiff_core.audio import AudioDecodeError
from audiodiff_core.evaluation.embedders import EmbedderItem, item_from_samples, load_embedder
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.mel.png import decode_png
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.vocoder import GriffinLim
from audiodiff_platform.audio_files import AudioItem as AudioFile
from audiodiff_platform.audio_files import Inputs, Source, fetched, items
from audiodiff_platform.decoder import Decoder, Limits
from audiodiff_platform.evaluate.portions import Portion, Portions
from audiodiff_platform.evaluate.result import Embedded, Result
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.scratch import scratch_folder
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record

BATCH_SIZE = 16
LOOPS_WITHOUT_FILE = "loops without a file"


@dataclass(frozen=True)
class Method:
    """The method of an evaluation.

    Args:
        embedder: Name of the embedder.
        embedder_digest: Digest of the embedder at the start of the job.
        mel: Mel configuration by which audio is cut and analyzed.
        sample_size: Maximum number of items in the sample of a side.
    """

    embedder: str
    embedder_digest: str
    mel: MelConfig
    sample_size: int


class EvaluateWorker:
    """A worker that embeds portions with one loaded embedder. Audio files are decoded in a child process.

    Args:
        portions: All portions of the job.
        output: Folder for the results, or None to return the results in the records.
        method: Method of the evaluation.

    Raises:
        ValueError: The embedder has changed since the start of the job.
    """

    def __init__(self, portions: Portions, output: str | None, method: Method) -> None:
        profile = ExecutionProfile.here()
        profile.prepare_process()
        self.portions, self.method, self.mel = portions, method, Mel(method.mel)
        self.output = None if output is None else Folder(output)
        self.embedder = load_embedder(method.embedder, method.mel.sample_rate, profile.device)
        if self.embedder.digest != method.embedder_digest:
            raise ValueError(
                f"embedder {method.embedder} has changed since the job began (digest {self.embedder.digest}, was "
                f"{method.embedder_digest}): restore it and run the command again"
            )

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(Limits.of(self.mel.config))

    @cached_property
    def _vocoder(self) -> GriffinLim:
        return GriffinLim(self.mel.config)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Embed a portion and return its record.

        The result is written to a file if the job has a folder. Otherwise the record holds the result.
        """
        portion = self.portions[shard]
        if portion.part:
            embedded = self._embed_part(portion, attempts)
        elif portion.manifests:
            embedded = self._embed_loops(portion, attempts)
        else:
            embedded = Embedded(portion.side)
            self._embed_sources(portion, portion.sources, attempts, embedded)
        result = embedded.result(self.method.sample_size)
        if self.output is None:
            return {"result": result.to_json()}
        attempts.require_ownership()
        content, name = json.dumps(result.to_json()).encode(), f"portions/{shard:06d}.json"
        self.output.write(name, content)
        return {"rows": len(result.part), "parts": {name: commits.sha256(content)}, "sizes": {name: len(content)}}

    def _embed_part(self, portion: Portion, attempts: Attempts) -> Embedded:
        result = Embedded(portion.side)
        for track, image in _rows(Folder(portion.uri), portion.part, (self.mel.config.y_res, self.mel.config.x_res)):
            attempts.require_running()
            self._add(track, iter([EmbedderItem(image, None)]), portion, result)
        return result

    def _embed_loops(self, portion: Portion, attempts: Attempts) -> Embedded:
        """Embed the loops of parts of a manifest. Loops without a file failed or were rejected."""
        result, folder = Embedded(portion.side), Folder(portion.uri)
        for manifest in portion.manifests:
            with folder.filesystem.open(folder.path(manifest), "rb") as file:
                paths = pq.read_table(file, columns=["path"])["path"]
            if paths.null_count:
                result.skipped[LOOPS_WITHOUT_FILE] += paths.null_count
            sources = Inputs(portion.uri).named(path for path in paths.to_pylist() if path is not None)
            self._embed_sources(portion, sources, attempts, result)
        return result

    def _embed_sources(self, portion: Portion, sources: Iterable[Source], attempts: Attempts, result: Embedded) -> None:
        """Embed sources of the folder of a portion, and add their items to `result`."""
        inputs = Inputs(portion.uri)
        with scratch_folder() as scratch:
            for source, fetching in fetched(inputs, sources, scratch):
                if attempts.gives_up(source.key):
                    result.unusable.append(f"{source.uri}: {attempts.reason}")
                    continue
                try:
                    local = fetching.result()
                    attempts.start(source.key)
                    for file in items(source, local, scratch, result.skipped):
                        self._add(file.name, self._items(file, scratch), portion, result)
                    attempts.start()
                except AudioDecodeError as error:  # the source cannot be fetched or read to its end
                    result.unusable.append(str(error))

    def _items(self, file: AudioFile, scratch: Path) -> Iterator[EmbedderItem]:
        """Yield the slices of an audio file. Raise AudioDecodeError before the first slice if it is unusable."""
        for image, samples in self._decoder.items(
            file.name, file.local, scratch / "items", self.mel.config, with_samples=self.embedder.needs_audio
        ):
            yield EmbedderItem(image, samples)

    def _add(self, track: str, track_items: Iterator[EmbedderItem], portion: Portion, result: Embedded) -> None:
        """Embed a track and add its items to `result`. A track that cannot be read adds no items."""
        features, round_trips, count = [], [], 0
        try:
            while batch := list(islice(track_items, BATCH_SIZE)):
                features.append(self.embedder(batch))
                first = len(result.tracks) + count
                if trips := [
                    self._round_trip(item, seed)
                    for seed, item in enumerate(batch[: max(0, portion.round_trips - first)], start=first)
                ]:
                    round_trips.append(self.embedder(trips))
                count += len(batch)
        except AudioDecodeError as error:
            result.unusable.append(f"{track}: {error.reason}")
            return
        result.add(track, features, round_trips)
        result.silent += count == 0

    def _round_trip(self, item: EmbedderItem, seed: int) -> EmbedderItem:
        """Convert the image of an item to audio, and return the item of this audio."""
        return item_from_samples(self._vocoder(item.image[np.newaxis], [seed])[0], self.mel)[0]


def _rows(folder: Folder, part: str, shape: tuple[int, int]) -> Iterator[tuple[str, Images]]:
    """Yield the track and the image (height, width) of each row of a file of a mel dataset."""
    with folder.filesystem.open(folder.path(part), "rb") as file, pq.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            for row in table.read_row_group(group, columns=["image", "audio_file"]).to_pylist():
                yield row["audio_file"], decode_png(row["image"]["bytes"], shape)


def portion_result(output: Folder | None, record: Record) -> Result:
    """Return the result of a portion.

    Args:
        output: Folder of the job, or None if `record` holds the result.
        record: Record of the portion.
    """
    if output is None:
        return Result.of(record["result"])
    (name,) = record["parts"]
    return Result.of(output.read_json(name))


def slice_counts(record: Record) -> Counts:
    """Return the number of slices of a committed portion."""
    return {"slices": record["rows"]}
