"""Where the beats of some audio are: by librosa, or by the network `beat_this`, which tells downbeats too."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples

BeatTracker = Literal["librosa", "beat_this"]

BEAT_HOP_S = 0.012
ATTACK_S = 0.06
"""How far the sound of a beat may begin from where a tracker puts it."""
ON_THE_GRID = 0.06
"""Of a beat: an end of the audio that is so close to where a beat would be is one."""
FAINT = 0.1
"""Of the median beat's peak: the grid goes on into the quiet before the music, where no bar begins."""


@dataclass(frozen=True)
class Beats:
    """When the beats of some audio are, in seconds, ascending, and which of them begin a bar (empty where the tracker does not say)."""

    times_s: npt.NDArray[np.float64]
    downbeats: tuple[int, ...] = ()


def track_beats(audio: Samples, sample_rate: int, tracker: BeatTracker = "librosa") -> Beats:
    """The beats of `audio` (n,), none where nothing pulses.

    librosa: dynamic programming over onset strength (Ellis 2007), no downbeats. beat_this: Foscarin, Schlüter & Widmer 2024 (the extra
    `beats`; fetches its weights at first use). Raises ValueError where the tracker is unknown or cannot be used.
    """
    require_mono(audio, sample_rate)
    match tracker:
        case "librosa":
            from librosa.beat import beat_track

            if not audio.any():
                return Beats(np.empty(0))
            level = audio / np.abs(audio).max()  # librosa's onset strength ignores what is below -100 dB
            found = beat_track(
                y=level, sr=sample_rate, hop_length=round(BEAT_HOP_S * sample_rate), trim=False, units="time"
            )[1]
            return Beats(
                _with_ends(
                    _from_first_heard(np.asarray(found, np.float64), audio, sample_rate), len(audio) / sample_rate
                )
            )
        case "beat_this":
            times, downbeats = _beat_this()(audio, sample_rate)
            times = np.asarray(times, np.float64)
            indices = tuple(int(np.abs(times - downbeat).argmin()) for downbeat in downbeats) if len(times) else ()
            return Beats(times, indices)
        case other:
            raise ValueError(f"tracker {other}: {' and '.join(get_args(BeatTracker))} are known")


def require_mono(audio: Samples, sample_rate: int) -> None:
    if audio.ndim != 1 or not len(audio):
        raise ValueError(f"audio of shape {audio.shape}: mono samples (n,) are needed")
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinite samples")
    if sample_rate < 1_000:
        raise ValueError(f"sample_rate {sample_rate}: at least 1000 Hz are needed")


def _beat_this() -> Any:
    try:
        inference: Any = importlib.import_module("beat_this.inference")
    except ModuleNotFoundError as error:
        raise ValueError(f"tracker beat_this is not installed ({error}): pip install 'audiodiff[beats]'") from error
    from torch import hub

    # By a file's path it loads weights only; by their name it would unpickle what it fetches.
    checkpoint = Path(hub.get_dir()) / "checkpoints" / "beat_this-final0.ckpt"
    if not checkpoint.exists():
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        try:
            hub.download_url_to_file(f"{inference.CHECKPOINT_URL}/final0.ckpt", str(checkpoint), progress=False)
        except OSError as error:
            raise ValueError(
                f"tracker beat_this: its weights cannot be fetched ({error}); save final0.ckpt as {checkpoint}"
            ) from error
    return inference.Audio2Beats(str(checkpoint))


def _from_first_heard(times_s: npt.NDArray[np.float64], audio: Samples, sample_rate: int) -> npt.NDArray[np.float64]:
    """The beats without those in the quiet before the first that is heard."""
    reach = round(ATTACK_S * sample_rate)
    peaks = [
        float(np.abs(audio[max(0, beat - reach) : beat + reach]).max())
        for beat in np.round(times_s * sample_rate).astype(int)
    ]
    heard = [index for index, peak in enumerate(peaks) if peak > FAINT * float(np.median(peaks))]
    return times_s[heard[0] :] if heard else times_s


def _with_ends(times_s: npt.NDArray[np.float64], duration_s: float) -> npt.NDArray[np.float64]:
    """The beats, with those that a tracker does not see because the audio begins or ends on them."""
    if len(times_s) < 2:
        return times_s
    beat = float(np.median(np.diff(times_s)))
    near = ON_THE_GRID * beat
    inside = times_s[(times_s > near) & (times_s < duration_s - near)]
    if not len(inside):
        return times_s
    first = [0.0] if times_s[0] <= near or abs(inside[0] - beat) <= near else []
    last = [duration_s] if times_s[-1] >= duration_s - near or abs(inside[-1] + beat - duration_s) <= near else []
    return np.concatenate([first, inside, last])
