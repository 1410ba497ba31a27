"""Files of loops, audio and pictures, and their rows of the manifest."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.loops import level_db, seam_score
from audiodiff_core.mel import MelConfig
from audiodiff_core.mel.picture import mel_picture
from audiodiff_core.mel.png import encode_png
from audiodiff_core.pipeline import Failure, Loop
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.sampling.requests import DEFAULT_STRENGTH, Strength
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_plan import PlannedLoop
from audiodiff_platform.mel_data.loops_folder import MANIFEST_SCHEMA
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.shard_work import Record


@dataclass(frozen=True)
class LoopFiles:
    """Writer of the files of loops, which measures their audio.

    Args:
        output: Output folder.
        mel: Mel configuration of the model.
        options: Options of the job: format, level and names of the files, and whether to write pictures.
        profile: Execution profile of the loops.
        model_digest: Digest of the model.
    """

    output: Folder
    mel: MelConfig
    options: GenerateOptions
    profile: ExecutionProfile
    model_digest: str

    @classmethod
    def of(cls, options: GenerateOptions, mel: MelConfig, profile: ExecutionProfile, model_digest: str) -> Self:
        """Return the writer of a job."""
        return cls(Folder(options.output_dir), mel, options, profile, model_digest)

    def written(self, loop: PlannedLoop, made: Loop) -> dict[str, Any]:
        """Write the files of a loop and return its manifest row, and digests and sizes of the files as `files`."""
        file = made.measured(self.mel.sample_rate, self.options.level)
        name = self.options.name_template.name(loop.id, made.request.seed, file.bpm, file.key)
        path = f"audio/{name}.{self.options.format}"
        contents = {path: file.content(self.options.format)}
        if self.options.pictures:
            contents[picture_path := f"pictures/{name}.png"] = encode_png(made.image[::-1])
        else:
            picture_path = None
        for part, content in contents.items():
            self.output.write(part, content)
        files = {part: (commits.sha256(content), len(content)) for part, content in contents.items()}
        return {
            **self._provenance(loop),
            "path": path,
            "audio": {"bytes": None, "path": path},
            "picture_path": picture_path,
            "files": files,
            "sha256": files[path][0],
            "duration_s": len(file.audio) / file.sample_rate,
            "tempo_bpm": file.tempo.bpm,
            "tempo_confidence": file.tempo.confidence,
            "key": file.key.name,
            "key_confidence": file.key.confidence,
            "seam_score": seam_score(file.audio, file.sample_rate),
            "gain_db": file.gain_db,
            "level_db": level_db(file.audio),
            "picture": mel_picture(made.image),
            "reason": None,
        }

    def row(self, loop: PlannedLoop, outcome: Loop | Failure) -> dict[str, Any]:
        """Write the files of a loop. Return the manifest row of a loop or of a failure.

        Raises:
            OSError: Storage failed, so that the shard must be tried again.
        """
        if isinstance(outcome, Loop):
            return self.written(loop, outcome)
        if isinstance(outcome.error, OSError):
            raise outcome.error
        return self.failure(loop, reason_of(outcome.error))

    def failure(self, loop: PlannedLoop, reason: str | None) -> dict[str, Any]:
        """Return the manifest row of a loop that has no file. Its measurements are null."""
        return {**self._provenance(loop), "path": None, "reason": reason}

    def _provenance(self, loop: PlannedLoop) -> dict[str, Any]:
        """Return the manifest columns for the request, the execution profile and the model."""
        request = loop.request
        fields: dict[str, Any] = {} if request is None else request.model_dump()
        if isinstance(request, Strength) and request.strength is None and request.start_step is None:
            fields["strength"] = DEFAULT_STRENGTH
        requested_key = fields.pop("key", None)  # `key` is the measured key
        return {
            **fields,
            "id": loop.id,
            "requested_duration_s": fields.get("duration_s"),
            "requested_key": requested_key,
            "encoding_values": loop.encoding or None,
            **self.profile.record(),
            "model_digest": self.model_digest,
            "mel_digest": self.mel.digest,
        }

    def record(self, shard: int, rows: Sequence[Mapping[str, Any]]) -> Record:
        """Write the part of the manifest of a shard, and return the record of the shard. See `shard_record`."""
        return shard_record(self.output, shard, rows)


def shard_record(output: Folder, shard: int, rows: Sequence[Mapping[str, Any]]) -> Record:
    """Write the part of the manifest of a shard.

    Args:
        output: Output folder.
        shard: Number of the shard.
        rows: Manifest rows of all loops of the shard, with digests and sizes of their files as `files`.

    Returns:
        The record of the shard: numbers of rows and failures, seconds of audio, digests and sizes in bytes of the
        files.
    """
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), buffer, compression="zstd")
    manifest, content = f"manifest/{shard:06d}.parquet", buffer.getvalue()
    output.write(manifest, content)
    with_audio = [row for row in rows if row["path"]]
    files = {name: part for row in with_audio for name, part in row["files"].items()}
    return {
        "rows": len(rows),
        "failed": len(rows) - len(with_audio),
        "audio_s": sum(row["duration_s"] for row in with_audio),
        "parts": {manifest: commits.sha256(content), **{name: digest for name, (digest, _) in files.items()}},
        "sizes": {manifest: len(content), **{name: size for name, (_, size) in files.items()}},
    }


def reason_of(error: BaseException) -> str:
    """Return the manifest's description of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
