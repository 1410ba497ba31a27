"""Audio files of loops and their rows of the manifest."""

from dataclasses import dataclass
from typing import Any

from audiodiff_core.audio import AudioFormat
from audiodiff_core.loops import level_db, seam_score
from audiodiff_core.loops.tempo import measure_tempo
from audiodiff_core.mel import MelConfig
from audiodiff_core.mel.picture import mel_picture
from audiodiff_core.pipeline import Loop
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.sampling.requests import DEFAULT_STRENGTH, Strength
from audiodiff_platform.generate.request_plan import PlannedLoop
from audiodiff_platform.storage import Folder, commits


@dataclass(frozen=True)
class LoopFiles:
    """Writer of the audio files of loops, which measures their audio.

    Args:
        output: Output folder.
        mel: Mel configuration of the model.
        format: File format.
        profile: Execution profile of the loops.
        model_digest: Digest of the model.
    """

    output: Folder
    mel: MelConfig
    format: AudioFormat
    profile: ExecutionProfile
    model_digest: str

    def written(self, loop: PlannedLoop, made: Loop) -> dict[str, Any]:
        """Write the audio file of a loop and return its manifest row."""
        sample_rate = self.mel.sample_rate
        content = made.file(sample_rate, self.format)
        path = f"audio/{loop.id}.{self.format}"
        self.output.write(path, content)
        tempo = measure_tempo(made.audio, sample_rate)
        return {
            **self._provenance(loop),
            "path": path,
            "sha256": commits.sha256(content),
            "bytes": len(content),
            "duration_s": len(made.audio) / sample_rate,
            "tempo_bpm": tempo.bpm,
            "tempo_confidence": tempo.confidence,
            "seam_score": seam_score(made.audio, sample_rate),
            "level_db": level_db(made.audio),
            "picture": mel_picture(made.image),
            "reason": None,
        }

    def failure(self, loop: PlannedLoop, reason: str | None) -> dict[str, Any]:
        """Return the manifest row of a loop that has no file."""
        measurements = dict.fromkeys(
            ("path", "sha256", "duration_s", "tempo_bpm", "tempo_confidence", "seam_score", "level_db", "picture")
        )
        return {**self._provenance(loop), **measurements, "reason": reason}

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
