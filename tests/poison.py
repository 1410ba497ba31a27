"""Audio files made to harm decoders."""

from pathlib import Path

import numpy as np
import soundfile


def expanding_flac(file: Path) -> Path:
    """Write 408 s of eight channels with a few clicks: 144 MB of 16-bit samples in about 115 kB."""
    samples = np.zeros((9_000_000, 8), np.int16)
    samples[::1_000_000] = 20_000
    soundfile.write(file, samples, 22_050)
    return file
