"""The worker of evaluate: a few audio files, or a shard of a mel dataset -> features of their slices."""

import json
from collections.abc import Iterator
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
from audiodiff_platform.audio_files.decoder import Decoder, Limits
from audiodiff_platform.evaluate.result import Embedded, Result
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.scratch import scratch_folder
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record

ITEMS_AT_ONCE = 16


@dataclass(frozen=True)
class Portion:
    """What a worker does at a time: some sources of an audio folder, or a part of a mel dataset. Of the first `round_trips` items it also
    makes audio from their images, and embeds that."""

    side: str
    uri: str
    sources: tuple[Source, ...] = ()
    part: str = ""
    round_trips: int = 0


@dataclass(frozen=True)
class Method:
    """The method of an evaluation: the embedder, the mel configuration, and the number of items of a side that are sampled."""

    embedder: str
    embedder_digest: str
    mel: MelConfig
    sampled_at_most: int


class EvaluateWorker:
    """A worker that embeds portions with one loaded embedder; audio files are decoded in a process of its own."""

    def __init__(self, portions: list[Portion], output: str | None, method: Method) -> None:
        profile = ExecutionProfile.here()
        profile.prepare_process()
        self.portions, self.method, self.mel = portions, method, Mel(method.mel)
        self.output = None if output is None else Folder(output)
        self.embedder = load_embedder(method.embedder, method.mel.sample_rate, profile.device)
        if self.embedder.digest != method.embedder_digest:
            changed = f"digest {self.embedder.digest}, it was {method.embedder_digest}"
            raise ValueError(f"embedder {method.embedder} has changed since the job began: {changed}")

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(Limits.of(self.mel.config))

    @cached_property
    def _vocoder(self) -> GriffinLim:
        return GriffinLim(self.mel.config)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Embed a portion -> the result, which goes into a file if the job has a folder."""
        portion = self.portions[shard]
        embedded = self._of_part(portion, attempts) if portion.part else self._of_sources(portion, attempts)
        result = embedded.result(self.method.sampled_at_most)
        if self.output is None:
            return {"result": result.to_json()}
        attempts.require_ownership()
        content, name = json.dumps(result.to_json()).encode(), f"portions/{shard:06d}.json"
        self.output.write(name, content)
        return {"rows": len(result.part), "parts": {name: commits.sha256(content)}, "sizes": {name: len(content)}}

    def _of_part(self, portion: Portion, attempts: Attempts) -> Embedded:
        result = Embedded(portion.side)
        for track, image in _rows(Folder(portion.uri), portion.part, (self.mel.config.y_res, self.mel.config.x_res)):
            attempts.require_running()
            self._add(track, iter([EmbedderItem(image, None)]), portion, result)
        return result

    def _of_sources(self, portion: Portion, attempts: Attempts) -> Embedded:
        result = Embedded(portion.side)
        inputs = Inputs(portion.uri)
        with scratch_folder() as scratch:
            for source, fetching in fetched(inputs, portion.sources, scratch):
                if attempts.gives_up(source.key):
                    result.unusable.append(f"{source.uri}: {attempts.reason}")
                    continue
                try:
                    local = fetching.result()
                    attempts.start(source.key)
                    for file in items(source, local, scratch, result.skipped):
                        self._add(file.name, self._items(file, scratch), portion, result)
                    attempts.start()
                except AudioDecodeError as error:  # it cannot be fetched, or not be read on
                    result.unusable.append(str(error))
        return result

    def _items(self, file: AudioFile, scratch: Path) -> Iterator[EmbedderItem]:
        """The slices of an audio file. Raises AudioDecodeError before the first one."""
        needs_audio = self.embedder.needs_audio
        for image, samples in self._decoder.items(
            file.name, file.local, scratch / "items", self.mel.config, with_samples=needs_audio
        ):
            yield EmbedderItem(image, samples)

    def _add(self, track: str, track_items: Iterator[EmbedderItem], portion: Portion, result: Embedded) -> None:
        """Adds all items of a track or, where it cannot be read, none."""
        features, round_trips, count = [], [], 0
        try:
            while some := list(islice(track_items, ITEMS_AT_ONCE)):
                features.append(self.embedder(some))
                first = len(result.tracks) + count
                if trips := [
                    self._round_trip(item, first + place)
                    for place, item in enumerate(some[: max(0, portion.round_trips - first)])
                ]:
                    round_trips.append(self.embedder(trips))
                count += len(some)
        except AudioDecodeError as error:
            result.unusable.append(f"{track}: {error.reason}")
            return
        result.add(track, features, round_trips)
        result.silent += count == 0

    def _round_trip(self, item: EmbedderItem, seed: int) -> EmbedderItem:
        return item_from_samples(self._vocoder(item.image[np.newaxis], [seed])[0], self.mel)[0]


def _rows(folder: Folder, part: str, shape: tuple[int, int]) -> Iterator[tuple[str, Images]]:
    """Read the track and the image of `shape` (height, width) of each row of a part of a mel dataset."""
    with folder.filesystem.open(folder.path(part), "rb") as file, pq.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            for row in table.read_row_group(group, columns=["image", "audio_file"]).to_pylist():
                yield row["audio_file"], decode_png(row["image"]["bytes"], shape)


def result_of(output: Folder | None, record: Record) -> Result:
    """Return the result of a portion, given its record and the folder of the job, if the job has one."""
    if output is None:
        return Result.of(record["result"])
    (name,) = record["parts"]
    return Result.of(output.read_json(name))


def embedded_slices(record: Record) -> Counts:
    """Count the slices of a committed portion."""
    return {"slices": record["rows"]}
