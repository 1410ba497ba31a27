"""Mel images of audio.

Terms:
  slice   float32 (slice_size,)       Audio samples, nominally in [-1, 1].
  image   uint8 (y_res, x_res)        Mel power in dB. Row 0 is the lowest band. 255 is the reference level, and 0 is
                                      `top_db` dB below it.
  model   float32 (1, y_res, x_res)   The image scaled to [-1, 1] for networks. See `to_model` and `to_image`.
"""

from audiodiff_core.mel.analysis import MIN_POWER, Mel
from audiodiff_core.mel.config import MAX_N_FFT, MelConfig, band_edges_hz, filterbank
from audiodiff_core.mel.ranges import IMAGE_MAX, Images, to_image, to_model

__all__ = [
    "IMAGE_MAX",
    "MAX_N_FFT",
    "MIN_POWER",
    "Images",
    "Mel",
    "MelConfig",
    "band_edges_hz",
    "filterbank",
    "to_image",
    "to_model",
]
