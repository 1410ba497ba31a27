"""The worker of evaluate: a few audio files, or a shard of a mel dataset -> features of their slices."""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from audiodiff_core.audio import AudioDecodeError
from audiodiff_core.embedders import Item, heard, items_of, load_embedder
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.metrics import Features
from audiodiff_core.png import decode_png
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.vocoder import GriffinLim
from audiodiff_platform import commits
from audiodiff_platform.audio_files import Inputs, Source, fetched, items, shortened
from audiodiff_platform.audio_files import Item as AudioFile
from audiodiff_platform.storage import Folder
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


@dataclass
class Embedded:
    """The result of a portion: features (n, d) and the track of each item, features of round trips, and unusable files."""

    side: str
    features: list[Features] = field(default_factory=list)
    tracks: list[str] = field(default_factory=list)
    round_trips: list[Features] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    silent: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Counts of what containers hold besides audio files."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        arrays = {"features": _packed(self.features), "round_trips": _packed(self.round_trips)}
        return {"side": self.side, "tracks": self.tracks, "unusable": self.unusable, "silent": self.silent, "skipped": shortened(self.skipped), **arrays}

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> "Embedded":
        """Return the result that `counts` gave as JSON values."""
        features, round_trips = (_unpacked(counts[name]) for name in ("features", "round_trips"))
        skipped = Counter(counts.get("skipped", {}))  # portions of earlier versions have none
        return cls(counts["side"], features, list(counts["tracks"]), round_trips, list(counts["unusable"]), counts["silent"], skipped)


def _packed(features: list[Features]) -> dict[str, Any] | None:
    if not features:
        return None
    array = np.ascontiguousarray(np.concatenate(features))
    return {"dtype": str(array.dtype), "shape": list(array.shape), "base64": base64.b64encode(array.tobytes()).decode()}


def _unpacked(packed: dict[str, Any] | None) -> list[Features]:
    if packed is None:
        return []
    return [np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"]).reshape(packed["shape"])]


class EvaluateWorker:
    """A worker that embeds portions with one loaded embedder."""

    def __init__(self, portions: list[Portion], output: str | None, embedder: str, embedder_digest: str, mel: MelConfig) -> None:
        profile = ExecutionProfile.here()
        profile.prepare_process()
        self.portions, self.mel = portions, Mel(mel)
        self.output = None if output is None else Folder(output)
        self.embedder = load_embedder(embedder, mel.sample_rate, profile.device)
        if self.embedder.digest != embedder_digest:
            raise ValueError(f"embedder {embedder} has changed since the job began: digest {self.embedder.digest}, it was {embedder_digest}")

    @cached_property
    def _vocoder(self) -> GriffinLim:
        return GriffinLim(self.mel.config)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Embed a portion -> the result, which goes into a file if the job has a folder."""
        portion = self.portions[shard]
        counts = (self._of_part(portion, attempts) if portion.part else self._of_sources(portion, attempts)).to_json()
        if self.output is None:
            return {"result": counts}
        attempts.require_ownership()
        content, name = json.dumps(counts).encode(), f"portions/{shard:06d}.json"
        self.output.write(name, content)
        return {"rows": len(counts["tracks"]), "parts": {name: commits.sha256(content)}, "sizes": {name: len(content)}}

    def _of_part(self, portion: Portion, attempts: Attempts) -> Embedded:
        result = Embedded(portion.side)
        for track, image in _rows(Folder(portion.uri), portion.part, (self.mel.config.y_res, self.mel.config.x_res)):
            attempts.require_running()
            self._add(track, iter([Item(image, None)]), portion, result)
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
                        self._add(file.name, self._items(file), portion, result)
                    attempts.start()
                except AudioDecodeError as error:  # it cannot be fetched, or not be read on
                    result.unusable.append(str(error))
        return result

    def _items(self, file: AudioFile) -> Iterator[Item]:
        """The slices of an audio file. Raises AudioDecodeError, also after some slices."""
        yield from items_of(file.local, self.mel)

    def _add(self, track: str, track_items: Iterator[Item], portion: Portion, result: Embedded) -> None:
        """Adds all items of a track or, where it cannot be read to its end, none."""
        features, round_trips, count = [], [], 0
        try:
            while some := list(islice(track_items, ITEMS_AT_ONCE)):
                features.append(self.embedder(some))
                first = len(result.tracks) + count
                if trips := [self._round_trip(item, first + place) for place, item in enumerate(some[: max(0, portion.round_trips - first)])]:
                    round_trips.append(self.embedder(trips))
                count += len(some)
        except AudioDecodeError as error:
            result.unusable.append(f"{track}: {error.reason}")
            return
        result.features += features
        result.round_trips += round_trips
        result.tracks += [track] * count
        result.silent += count == 0

    def _round_trip(self, item: Item, seed: int) -> Item:
        return heard(self._vocoder(item.image[np.newaxis], [seed])[0], self.mel)[0]


def _rows(folder: Folder, part: str, shape: tuple[int, int]) -> Iterator[tuple[str, Images]]:
    """Read the track and the image of `shape` (height, width) of each row of a part of a mel dataset."""
    with folder.filesystem.open(folder.path(part), "rb") as file, pq.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            for row in table.read_row_group(group, columns=["image", "audio_file"]).to_pylist():
                yield row["audio_file"], decode_png(row["image"]["bytes"], shape)


def result_of(output: Folder | None, record: Record) -> Embedded:
    """Return the result of a portion, given its record and the folder of the job, if the job has one."""
    if output is None:
        return Embedded.of(record["result"])
    (name,) = record["parts"]
    return Embedded.of(output.read_json(name))


def embedded_slices(record: Record) -> Counts:
    """Count the slices of a committed portion."""
    return {"slices": record["rows"]}
