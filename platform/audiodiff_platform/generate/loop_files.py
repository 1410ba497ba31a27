"""Files of loops, audio and pictures, and their rows of the manifest."""

from dataclasses import dataclass
from typing import Any

from audiodiff_core.loops import level_db, seam_score
from audiodiff_core.mel import MelConfig
from audiodiff_core.mel.png import encode_png
from audiodiff_core.pipeline import Loop
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.sampling.requests import DEFAULT_STRENGTH, Strength
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_plan import PlannedLoop
from audiodiff_platform.storage import Folder, commits


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
            "reason": None,
        }

    def failure(self, loop: PlannedLoop, reason: str | None) -> dict[str, Any]:
        """Return the manifest row of a loop that has no file. Its measurements are null."""
        return {**self._provenance(loop), "path": None, "reason": reason}

    def _provenance(self, loop: PlannedLoop) -> dict[str, Any]:
        """Return the manifest columns for the request, the execution profile and the model."""
        request = loop.request
        fields: dict[str, Any] = {} if request is None else request.model_dump()
        if isinstance(request, Strength) and request.strength is None and request.start_step is None:
            fields["strength"] = DEFAULT_STRENGTH
        return {
            **fields,
            "id": loop.id,
            "requested_duration_s": fields.get("duration_s"),
            "encoding_values": loop.encoding or None,
            **self.profile.record(),
            "model_digest": self.model_digest,
            "mel_digest": self.mel.digest,
        }


def reason_of(error: BaseException) -> str:
    """Return the manifest's description of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
