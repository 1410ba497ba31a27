"""Networks: presets, construction, image sizes, folding of pixels, circular padding and digests."""

from audiodiff_core.models.digest import network_digest
from audiodiff_core.models.folding import FOLD, fold_of, folded, unfolded, with_fold
from audiodiff_core.models.networks import build_network, build_vae, check_encoding, check_resolution, parameter_count
from audiodiff_core.models.presets import (
    PRESETS,
    VAE_PRESETS,
    Preset,
    PresetName,
    VaePreset,
    VaePresetName,
    objective_for,
)
from audiodiff_core.models.shapes import image_sides, sample_channels, side_multiple

__all__ = [
    "FOLD",
    "PRESETS",
    "VAE_PRESETS",
    "Preset",
    "PresetName",
    "VaePreset",
    "VaePresetName",
    "build_network",
    "build_vae",
    "check_encoding",
    "check_resolution",
    "fold_of",
    "folded",
    "image_sides",
    "network_digest",
    "objective_for",
    "parameter_count",
    "sample_channels",
    "side_multiple",
    "unfolded",
    "with_fold",
]
