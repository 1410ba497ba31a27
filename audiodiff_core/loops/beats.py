"""Beat tracking with librosa or with the network `beat_this`, which also detects downbeats."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples

BeatTracker = Literal["librosa", "beat_this"]

BEAT_HOP_S = 0.012
"""Time in seconds between the frames of librosa's beat tracker."""
MIN_SAMPLE_RATE = 1_000
ATTACK_S = 0.06
"""Largest distance in seconds between a tracked beat and the attack of its sound."""
GRID_TOLERANCE = 0.06
"""Largest distance of an end of the audio from the beat grid, in beats, at which the end counts as a beat."""
MIN_FIRST_PEAK = 0.1
"""Smallest peak of the first beat, relative to the median peak of all beats.

Trackers extend the beat grid into silence before the music, but no bar begins there.
"""


@dataclass(frozen=True)
class Beats:
    """Beats of an audio signal.

    Args:
        times_s: Times of the beats in seconds, ascending, of shape (beats,).
        downbeats: Indices into `times_s` of the beats that begin a bar. Empty if the tracker detects no downbeats.
    """

    times_s: npt.NDArray[np.float64]
    downbeats: tuple[int, ...] = ()


def track_beats(audio: Samples, sample_rate: int, tracker: BeatTracker = "librosa") -> Beats:
    """Track the beats of mono audio.

    Args:
        audio: Mono samples of shape (n,).
        sample_rate: Sample rate in Hz.
        tracker: `librosa` tracks beats by dynamic programming over onset strength (Ellis, "Beat Tracking by Dynamic
            Programming", 2007) and detects no downbeats. `beat_this` is the network of Foscarin, Schlüter & Widmer
            ("Beat This!", 2024). It needs the extra `beats` and downloads its weights at first use.

    Returns:
        The beats; no beats if the audio has no pulse.

    Raises:
        ValueError: If `require_mono` rejects the audio, or if the tracker is unknown, not installed, or has no weights.
    """
    require_mono(audio, sample_rate)
    match tracker:
        case "librosa":
            from librosa.beat import beat_track

            if not audio.any():
                return Beats(np.empty(0))
            normalized = audio / np.abs(audio).max()  # librosa's onset strength ignores levels below -100 dB
            hop = round(BEAT_HOP_S * sample_rate)
            tracked = beat_track(y=normalized, sr=sample_rate, hop_length=hop, trim=False, units="time")[1]
            times_s = _skip_quiet_start(np.asarray(tracked, np.float64), audio, sample_rate)
            return Beats(_add_beats_at_ends(times_s, len(audio) / sample_rate))
        case "beat_this":
            times, downbeats = _beat_this()(audio, sample_rate)
            times = np.asarray(times, np.float64)
            indices = tuple(int(np.abs(times - downbeat).argmin()) for downbeat in downbeats) if len(times) else ()
            return Beats(times, indices)
        case unknown:
            raise ValueError(f"tracker {unknown}: must be {' or '.join(get_args(BeatTracker))}")


def require_mono(audio: Samples, sample_rate: int) -> None:
    """Check that `audio` is a non-empty, finite mono signal.

    Raises:
        ValueError: If the shape is not (n,) with n > 0, if a sample is NaN or infinite, or if `sample_rate` is below
            1000 Hz.
    """
    if audio.ndim != 1 or not len(audio):
        raise ValueError(f"audio of shape {audio.shape}: must be mono samples of shape (n,)")
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinite samples: all samples must be finite")
    if sample_rate < MIN_SAMPLE_RATE:
        raise ValueError(f"sample_rate {sample_rate}: must be at least {MIN_SAMPLE_RATE} Hz")


def _beat_this() -> Any:
    """Load the `beat_this` network, and download its weights if they are missing."""
    try:
        inference: Any = importlib.import_module("beat_this.inference")
    except ModuleNotFoundError as error:
        raise ValueError(f"tracker beat_this is not installed ({error}): pip install 'audiodiff[beats]'") from error
    from torch import hub

    # beat_this loads a local file with weights_only, but unpickles a checkpoint that it downloads by name.
    checkpoint = Path(hub.get_dir()) / "checkpoints" / "beat_this-final0.ckpt"
    if not checkpoint.exists():
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        try:
            hub.download_url_to_file(f"{inference.CHECKPOINT_URL}/final0.ckpt", str(checkpoint), progress=False)
        except OSError as error:
            raise ValueError(
                f"tracker beat_this: cannot download its weights ({error}); save final0.ckpt as {checkpoint}"
            ) from error
    return inference.Audio2Beats(str(checkpoint))


def _skip_quiet_start(times_s: npt.NDArray[np.float64], audio: Samples, sample_rate: int) -> npt.NDArray[np.float64]:
    """Drop the beats before the first audible beat."""
    reach = round(ATTACK_S * sample_rate)
    peaks = [
        float(np.abs(audio[max(0, beat - reach) : beat + reach]).max())
        for beat in np.round(times_s * sample_rate).astype(int)
    ]
    audible = [index for index, peak in enumerate(peaks) if peak > MIN_FIRST_PEAK * float(np.median(peaks))]
    return times_s[audible[0] :] if audible else times_s


def _add_beats_at_ends(times_s: npt.NDArray[np.float64], duration_s: float) -> npt.NDArray[np.float64]:
    """Add the beats at the start and the end of the audio, which trackers miss."""
    if len(times_s) < 2:
        return times_s
    beat = float(np.median(np.diff(times_s)))
    near = GRID_TOLERANCE * beat
    inside = times_s[(times_s > near) & (times_s < duration_s - near)]
    if not len(inside):
        return times_s
    first = [0.0] if times_s[0] <= near or abs(inside[0] - beat) <= near else []
    last = [duration_s] if times_s[-1] >= duration_s - near or abs(inside[-1] + beat - duration_s) <= near else []
    return np.concatenate([first, inside, last])
