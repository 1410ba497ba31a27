"""One call of a denoising network, in the batch shape and the arithmetic of an execution profile.

The bits of a prediction depend on the batch shape, but not on the batch slot or on the other samples. Smaller batches
are therefore padded to the full batch size. Tests confirm on CPUs, in fp32 and bf16, that the batch slot and the other
samples have no effect. The only exception is a linear layer with at most 64 outputs whose number of inputs is not a
multiple of 4. Such a layer, as in a tiny conditional network for encodings of 5 values, rounds the rows of a batch
differently.
"""

import threading
from contextlib import nullcontext
from typing import Any

import torch

from audiodiff_core.models import PLACEMENT, beats_of, fold_of, folded, sample_channels, unfolded
from audiodiff_core.models.circular import circular_time
from audiodiff_core.models.placement import placed
from audiodiff_core.sampling.profile import ExecutionProfile

MAX_COMPILED_SHAPES = 256
"""Maximum number of pairs of width and padding mode that torch.compile compiles. Further pairs run uncompiled."""


class Network:
    """A denoising network on the device of an execution profile.

    Args:
        unet: A UNet2DModel, or a UNet2DConditionModel for encodings. The network itself is not changed: its copy is
            converted and moved.
        profile: The execution profile.

    Attributes:
        profile: The execution profile.
        encoding_dim: Values per encoding, or None for an unconditional network.
        encoding_values: Values per encoding with its placement, see `__call__`.
        channels: Channels of a sample.
        beats: Beats that the network takes as channels, or None.
    """

    def __init__(self, unet: Any, profile: ExecutionProfile) -> None:
        self.profile = profile
        self.encoding_dim: int | None = getattr(unet.config, "cross_attention_dim", None)
        self.channels = sample_channels(unet)
        self.beats = beats_of(unet)
        self.encoding_values = (self.encoding_dim or 0) + (0 if self.beats is None else PLACEMENT)
        self._fold = fold_of(unet)
        self._module = placed(unet, profile.device, profile.dtype)
        self._forward: Any = self._module
        self._lock = threading.Lock()
        if profile.compiled:
            self._forward = torch.compile(  # type: ignore[call-overload]  # torch's overloads lack recompile_limit
                self._module,
                dynamic=False,
                recompile_limit=MAX_COMPILED_SHAPES,
                mode="reduce-overhead" if profile.on_gpu else "default",
            )

    def __call__(
        self,
        samples: torch.Tensor,
        timesteps: torch.Tensor,
        encodings: torch.Tensor | None = None,
        circular: bool = False,
    ) -> torch.Tensor:
        """Compute the predictions for one batch.

        Args:
            samples: Scaled samples (batch, channels, height, width), float32 on the device.
            timesteps: Timesteps (batch,), float32 on the device.
            encodings: Encodings (batch, 1, dim) of a conditional network. Zeros make a prediction unconditional. For a
                network that takes beats, (batch, 1, dim + PLACEMENT): the placements of the beats follow.
            circular: Whether the convolutions pad circularly in time.

        Returns:
            Predictions (batch, channels, height, width), float32 on the device.
        """
        dtype = self.profile.dtype
        batch = [folded(samples, self._fold).to(dtype, memory_format=torch.channels_last), timesteps]
        if encodings is not None:
            batch.append(encodings.to(dtype))
        with self._lock, circular_time(self._module) if circular else nullcontext():
            predictions: torch.Tensor = self._forward(*batch, return_dict=False)[0]
        predictions = unfolded(predictions, self._fold)
        # The output of a CUDA graph is overwritten by the next call.
        return predictions.to(torch.float32, copy=self.profile.compiled and self.profile.on_gpu)
