"""Construction of a network from its configuration, with the settings that diffusers does not know."""

import math
from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel

from audiodiff_core.models.beats import Beats, beats_of
from audiodiff_core.models.conditioned import EMBEDDING, ConditionedUNet, extra_channels
from audiodiff_core.models.folding import FOLD, fold_of

BEATS = "beats"
"""Name of the setting of `models.beats` in the configuration of a network. Without it, a network takes no beats."""

MAX_FOLD = 16
"""Largest side of a block of pixels."""


def configured(network_class: Any, config: Mapping[str, Any]) -> Any:
    """Build a network from a configuration with or without the settings `fold` and `beats`.

    Args:
        network_class: Class of diffusers. A UNet2DConditionModel whose configuration embeds the encoding with the
            timestep becomes a ConditionedUNet.
        config: The configuration.

    Raises:
        ValueError: If the settings do not fit the network.
    """
    if (embeds := config.get("class_embed_type")) not in (None, EMBEDDING):
        raise ValueError(f"class_embed_type {embeds}: must be null or {EMBEDDING}")
    conditioned = issubclass(network_class, UNet2DConditionModel) and embeds == EMBEDDING
    built_class: Any = ConditionedUNet if conditioned else network_class
    own = {name: config[name] for name in (FOLD, BEATS) if config.get(name) is not None}
    settings = {name: value for name, value in config.items() if name not in (FOLD, BEATS)}
    network = built_class(**built_class.extract_init_dict(settings)[0])
    _require_fold(own.get(FOLD, 1), network.config.out_channels)
    network.register_to_config(**own)
    if conditioned:
        network.beats = Beats.model_validate(own[BEATS]) if BEATS in own else None
        _require_encodings(network)
    elif BEATS in own:
        raise ValueError(f"{BEATS} needs class_embed_type {EMBEDDING}")
    _require_channels(network)
    return network


def _require_fold(fold: Any, channels: int) -> None:
    """Raise ValueError if the setting `fold` is no block of limited sides, or does not fit the channels."""
    sides = fold if isinstance(fold, list | tuple) else [fold, fold]
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= MAX_FOLD for side in sides):
        raise ValueError(f"{FOLD} {fold}: must be a number from 1 to {MAX_FOLD}, or two of them")
    if channels % math.prod(sides):
        raise ValueError(f"{FOLD} {fold}: blocks of {math.prod(sides)} must divide out_channels {channels}")


def _require_channels(network: Any) -> None:
    """Raise ValueError if the inputs of a network are not its outputs and its beats."""
    config, extra = network.config, extra_channels(beats_of(network), fold_of(network)[1])
    if config.in_channels != config.out_channels + extra:
        raise ValueError(
            f"in_channels {config.in_channels} and out_channels {config.out_channels} must "
            + (f"differ by the {extra} channels of the beats" if extra else "be equal")
        )


def _require_encodings(network: ConditionedUNet) -> None:
    """Raise ValueError if the embedding and the beats of a network do not fit the size of its encodings."""
    config, beats = network.config, network.beats
    dim, embedded = config.cross_attention_dim, config.projection_class_embeddings_input_dim
    if embedded != dim:
        raise ValueError(f"projection_class_embeddings_input_dim {embedded}: must be cross_attention_dim {dim}")
    if beats is not None and beats.first + beats.anchors > dim:
        raise ValueError(f"{BEATS}: anchors {beats.first} to {beats.first + beats.anchors} are not in {dim} values")
