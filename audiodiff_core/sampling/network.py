"""One call of a denoising network, always in the shape and the arithmetic of a profile.

A sample's bits depend on the batch's shape, not on its place in it or its neighbours, so fewer samples are padded to the full batch.
(Seen on CPUs in fp32 and bf16, with one exception: a linear layer of up to 64 outputs whose number of inputs is no multiple of 4, such
as that of a tiny conditional network for encodings of 5 numbers, computes the rows of a batch with different last bits.)
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from audiodiff_core.models.circular import circular_time
from audiodiff_core.sampling.profile import ExecutionProfile

SHAPES = 256
"""Widths, circular or not, that a compiled network is compiled for; beyond them it would compute otherwise."""


@dataclass(frozen=True)
class ModelInput:
    """What the network is asked of one sample: (1, channels, height, width), its timestep, and an encoding (dim,) where it is conditional."""

    sample: torch.Tensor
    timestep: float
    encoding: torch.Tensor | None = None


class Network:
    """A UNet2DModel, or a UNet2DConditionModel that is given an encoding, on the device of a profile.

    In another precision than fp32 it is a copy: the network that was given stays as it is.
    """

    def __init__(self, unet: Any, profile: ExecutionProfile) -> None:
        self.profile = profile
        self.encoding_dim: int | None = getattr(unet.config, "cross_attention_dim", None)
        self.channels: int = unet.config.in_channels
        if profile.dtype != torch.float32:
            unet = torch.nn.Module.to(
                copy.deepcopy(unet), profile.dtype
            )  # diffusers' own warns of layers to be kept in float32, though of none
        self._module = unet.to(profile.device, memory_format=torch.channels_last).eval()
        self._call: Any = self._module
        if profile.compiled:
            self._call = torch.compile(self._module, dynamic=False, recompile_limit=SHAPES)  # type: ignore[call-overload]  # the overloads lack it

    @torch.inference_mode()
    def __call__(self, queries: Sequence[ModelInput], circular: bool = False) -> list[torch.Tensor]:
        """The predictions (1, channels, height, width), float32 on the device, of up to a batch of queries of the same sides."""
        places, device, dtype = self.profile.batch_size, self.profile.device, self.profile.dtype
        assert 0 < len(queries) <= places
        samples = torch.zeros((places, *queries[0].sample.shape[1:]), dtype=dtype, device=device).contiguous(
            memory_format=torch.channels_last
        )
        timesteps = torch.zeros(places, dtype=torch.float32)
        encodings = (
            None
            if self.encoding_dim is None
            else torch.zeros((places, 1, self.encoding_dim), dtype=dtype, device=device)
        )
        for place, query in enumerate(queries):
            samples[place] = query.sample[0]
            timesteps[place] = query.timestep
            if query.encoding is not None:
                assert encodings is not None
                encodings[place, 0] = query.encoding
        given = (samples, timesteps.to(device)) if encodings is None else (samples, timesteps.to(device), encodings)
        with circular_time(self._module) if circular else nullcontext():
            predictions = self._call(*given, return_dict=False)[0].float()
        return [predictions[place : place + 1] for place in range(len(queries))]
