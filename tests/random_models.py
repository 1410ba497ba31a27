"""Models with random weights."""

from pathlib import Path
from typing import Final

import torch

from audiodiff_core.checkpoint import EncoderRecord, ModelRecord, save_model
from audiodiff_core.embeddings.measured import MeasuredConditions
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, build_network

CONDITIONAL: Final = "tiny-conditional"


def save_conditional(
    folder: Path,
    dim: int,
    encoder: EncoderRecord | None = None,
    hop_length: int = 1_024,
    conditions: MeasuredConditions | None = None,
) -> Path:
    """Save a conditional model for images of 32x32.

    Args:
        folder: Folder of the model.
        dim: Number of values of an encoding.
        encoder: Record of the encoder, or None.
        hop_length: Hop length of the mel configuration in samples.
        conditions: Conditions on measured features, or None.

    Returns:
        The folder.
    """
    mel = MelConfig(x_res=32, y_res=32, hop_length=hop_length)
    torch.manual_seed(0)
    network = build_network(CONDITIONAL, mel, encoding_dim=dim)
    record = ModelRecord(recipe={}, data_digest="none", metrics={}, encoder=encoder, conditions=conditions)
    save_model(folder, network, PRESETS[CONDITIONAL].objective.scheduler("ddim"), mel, record)
    return folder
