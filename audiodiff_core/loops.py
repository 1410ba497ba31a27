"""What makes audio a loop: its tempo, and how well its end meets its beginning."""

import numpy as np

from audiodiff_core.audio import Samples

SEAM_WINDOW_S = 0.02


def tempo_bpm(audio: Samples, sample_rate: int) -> float:
    """Tempo in beats per minute from the autocorrelation of the onset strength (librosa)."""
    from librosa.feature import tempo

    return float(tempo(y=audio, sr=sample_rate)[0])


def seam_score(audio: Samples, sample_rate: int) -> float:
    """How much the signal jumps where the end meets the beginning, relative to its interior: about 1 or less is not heard.

    The jump at a point is the spectral flux between the windows of 20 ms before and after it; the score is the jump at the wrap
    divided by the 90th percentile of the jumps inside.
    """
    window = round(SEAM_WINDOW_S * sample_rate)
    count = len(audio) // window
    if count < 4:
        raise ValueError(f"audio of {len(audio)} samples: a seam score needs at least {4 * window}")
    frames = np.lib.stride_tricks.sliding_window_view(np.concatenate([audio[-window:], audio]), window)[::window]
    spectra = np.abs(np.fft.rfft(frames * np.hanning(window), axis=-1))
    jumps = np.abs(np.diff(spectra, axis=0)).sum(axis=-1)
    typical = float(np.percentile(jumps[1:], 90))
    return float(jumps[0]) / typical if typical > 0 else (0.0 if jumps[0] == 0 else float("inf"))


def level_db(audio: Samples) -> float:
    """Root mean square level in dB relative to full scale; silence is -200 dB."""
    return float(20 * np.log10(max(1e-10, float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))))))
