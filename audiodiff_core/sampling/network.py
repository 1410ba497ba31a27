"""One call of a denoising network, in the batch shape and the arithmetic of an execution profile.

The bits of a prediction depend on the batch shape, but not on the batch slot or on the other samples. Smaller batches
are therefore padded to the full batch size. Tests confirm on CPUs, in fp32 and bf16, that the batch slot and the other
samples have no effect. The only exception is a linear layer with at most 64 outputs whose number of inputs is not a
multiple of 4. Such a layer, as in a tiny conditional network for encodings of 5 values, rounds the rows of a batch
differently.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from audiodiff_core.models.circular import circular_time
from audiodiff_core.sampling.profile import ExecutionProfile

MAX_COMPILED_SHAPES = 256
"""Maximum number of pairs of width and padding mode that torch.compile compiles. Further pairs run uncompiled."""


@dataclass(frozen=True)
class ModelInput:
    """Input of the network in one batch slot.

    Attributes:
        sample: Scaled sample (1, channels, height, width).
        timestep: Timestep of the sample.
        encoding: Encoding (dim,) of a conditional network. None makes the prediction unconditional.
    """

    sample: torch.Tensor
    timestep: float
    encoding: torch.Tensor | None = None


class Network:
    """A denoising network on the device of an execution profile.

    Args:
        unet: A UNet2DModel, or a UNet2DConditionModel for encodings. In fp32, `unet` itself is moved to the device. In
            another precision, a copy is converted and moved.
        profile: The execution profile.

    Attributes:
        profile: The execution profile.
        encoding_dim: Values per encoding, or None for an unconditional network.
        channels: Channels of a sample.
    """

    def __init__(self, unet: Any, profile: ExecutionProfile) -> None:
        self.profile = profile
        self.encoding_dim: int | None = getattr(unet.config, "cross_attention_dim", None)
        self.channels: int = unet.config.in_channels
        if profile.dtype != torch.float32:
            # diffusers' own `to` warns about layers to keep in float32, even if there are no such layers.
            unet = torch.nn.Module.to(copy.deepcopy(unet), profile.dtype)
        self._module = unet.to(profile.device, memory_format=torch.channels_last).eval()
        self._forward: Any = self._module
        if profile.compiled:
            self._forward = torch.compile(  # type: ignore[call-overload]  # torch's overloads lack recompile_limit
                self._module, dynamic=False, recompile_limit=MAX_COMPILED_SHAPES
            )

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[ModelInput], circular: bool = False) -> list[torch.Tensor]:
        """Compute the predictions for at most one batch of inputs.

        Args:
            inputs: 1 to `batch_size` inputs, with samples of one shape.
            circular: Whether the convolutions pad circularly in time.

        Returns:
            One prediction (1, channels, height, width) per input, float32 on the device.
        """
        slots, device, dtype = self.profile.batch_size, self.profile.device, self.profile.dtype
        assert 0 < len(inputs) <= slots
        samples = torch.zeros((slots, *inputs[0].sample.shape[1:]), dtype=dtype, device=device).contiguous(
            memory_format=torch.channels_last
        )
        timesteps = torch.zeros(slots, dtype=torch.float32)
        encodings = (
            None
            if self.encoding_dim is None
            else torch.zeros((slots, 1, self.encoding_dim), dtype=dtype, device=device)
        )
        for slot, model_input in enumerate(inputs):
            samples[slot] = model_input.sample[0]
            timesteps[slot] = model_input.timestep
            if model_input.encoding is not None:
                assert encodings is not None
                encodings[slot, 0] = model_input.encoding
        batch = (samples, timesteps.to(device)) if encodings is None else (samples, timesteps.to(device), encodings)
        with circular_time(self._module) if circular else nullcontext():
            predictions = self._forward(*batch, return_dict=False)[0].float()
        return [predictions[slot : slot + 1] for slot in range(len(inputs))]
