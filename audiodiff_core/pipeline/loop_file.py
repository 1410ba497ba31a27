"""Audio files of loops: the level and the measurements of the audio, and tags that state how to make the loop again."""

import json
from dataclasses import dataclass

from audiodiff_core.audio import AudioFormat, LoopInfo, Samples, Tags, encode_audio
from audiodiff_core.audio.wav_chunks import BEATS_PER_BAR
from audiodiff_core.loops.cut import meter_of_tempo
from audiodiff_core.loops.key import Key, measure_key
from audiodiff_core.loops.loudness import TargetLevel, with_gain
from audiodiff_core.loops.tempo import Tempo, measure_tempo
from audiodiff_core.sampling.requests import DEFAULT_STRENGTH, SeededRequest, Strength

SOFTWARE = "audiodiff"
"""Name of the writing program. It has no version, because the bytes of a file do not depend on the version."""
NOT_IN_TAGS = frozenset({"id", "source", "sources", "encoding", "like", "prompt"})
"""Fields of requests that name files or results, or that an encoding stands for.

Paths and names say nothing about the loop, and may be private.
"""


@dataclass(frozen=True, eq=False)
class LoopFile:
    """Audio of a loop as its file holds it, with its measurements and tags.

    Attributes:
        audio: The audio (n,), at the level of the file.
        sample_rate: Sample rate in Hz.
        gain_db: Gain in dB by which the level differs from that of the loop.
        tempo: Measured tempo.
        key: Measured key.
        meter: Beats of a seamless loop or of a loop of bars, which loops from its first to its last sample; or None.
        comment: The request and the digest of the model as JSON.
    """

    audio: Samples
    sample_rate: int
    gain_db: float
    tempo: Tempo
    key: Key
    meter: LoopInfo | None
    comment: str

    @classmethod
    def of(
        cls,
        audio: Samples,
        sample_rate: int,
        request: SeededRequest,
        origin: "Origin",
        level: TargetLevel | None = None,
    ) -> "LoopFile":
        """Bring audio to a level and measure it.

        Args:
            audio: Audio (n,) of the loop.
            sample_rate: Sample rate in Hz.
            request: The request, with all defaults filled in.
            origin: What shaped the loop beside the request.
            level: The level, or None for the level of the loop.

        Raises:
            ValueError: The sample rate does not allow the level to be measured.
        """
        gain_db = 0.0 if level is None else level.gain_db(audio, sample_rate)
        audio = with_gain(audio, gain_db)
        tempo, meter = measure_tempo(audio, sample_rate), None
        if request.bars is not None:
            meter = LoopInfo(request.bars * BEATS_PER_BAR, BEATS_PER_BAR)
        elif request.seamless:
            meter = meter_of_tempo(tempo.bpm, len(audio), sample_rate)
        key = measure_key(audio, sample_rate)
        return cls(audio, sample_rate, gain_db, tempo, key, meter, origin.described(request))

    @property
    def bpm(self) -> float | None:
        """Tempo that the file states: that of its whole beats, or else the measured tempo."""
        if self.meter is not None and self.meter.beats is not None:
            return self.meter.bpm(len(self.audio), self.sample_rate)
        return self.tempo.bpm

    def content(self, file_format: AudioFormat) -> bytes:
        """Encode the audio as a file with loop points and tags. mp3 has no loop points."""
        loop = None if file_format == "mp3" else self.meter
        tags = Tags(self.bpm, self.key.symbol, self.comment, SOFTWARE)
        return encode_audio(self.audio, self.sample_rate, file_format, loop, tags)


@dataclass(frozen=True)
class Origin:
    """Digests of the model and of the encoding that made a loop.

    Attributes:
        model_digest: Digest of the model, or None for networks that were not loaded.
        encoding_digest: Digest of the values of the encoding, or None without an encoding.
    """

    model_digest: str | None = None
    encoding_digest: str | None = None

    def described(self, request: SeededRequest) -> str:
        """Return a request and the digests as compact JSON in ASCII, without paths and names."""
        fields = request.model_dump(mode="json", exclude_none=True, exclude=set(NOT_IN_TAGS))
        if isinstance(request, Strength) and request.strength is None and request.start_step is None:
            fields["strength"] = DEFAULT_STRENGTH
        if self.encoding_digest is not None:
            fields["encoding_sha256"] = self.encoding_digest
        model = {} if self.model_digest is None else {"model": self.model_digest}
        return json.dumps({**model, "request": fields}, separators=(",", ":"), sort_keys=True)
