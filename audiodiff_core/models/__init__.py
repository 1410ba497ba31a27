"""Networks: presets, construction, image sizes, folding of pixels, circular padding, beats and digests."""

from audiodiff_core.models.beats import PLACEMENT, Beats, beats_of
from audiodiff_core.models.conditioned import diffusers_class
from audiodiff_core.models.configured import configured
from audiodiff_core.models.digest import network_digest
from audiodiff_core.models.folding import UNFOLDED, Fold, fold_of, folded, unfolded
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
from audiodiff_core.models.shapes import image_sides, sample_channels, width_multiple

__all__ = [
    "PLACEMENT",
    "PRESETS",
    "UNFOLDED",
    "VAE_PRESETS",
    "Beats",
    "Fold",
    "Preset",
    "PresetName",
    "VaePreset",
    "VaePresetName",
    "beats_of",
    "build_network",
    "build_vae",
    "check_encoding",
    "check_resolution",
    "configured",
    "diffusers_class",
    "fold_of",
    "folded",
    "image_sides",
    "network_digest",
    "objective_for",
    "parameter_count",
    "sample_channels",
    "unfolded",
    "width_multiple",
]
