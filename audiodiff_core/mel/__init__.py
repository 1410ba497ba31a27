"""Mel images of audio.

Glossary:
  slice   float32 (slice_size,)        samples, nominally in [-1, 1]
  image   uint8 (y_res, x_res)         log-mel power; row 0 is the lowest band; 255 is the reference level, 0 is `top_db` below it
  model   float32 (1, y_res, x_res)    the image in [-1, 1]; only `to_model` and `to_image` convert
"""

from audiodiff_core.mel.analysis import MIN_POWER, Mel
from audiodiff_core.mel.config import LARGEST_N_FFT, MelConfig, band_edges_hz, filterbank
from audiodiff_core.mel.ranges import IMAGE_MAX, Images, to_image, to_model

__all__ = [
    "IMAGE_MAX",
    "LARGEST_N_FFT",
    "MIN_POWER",
    "Images",
    "Mel",
    "MelConfig",
    "band_edges_hz",
    "filterbank",
    "to_image",
    "to_model",
]
