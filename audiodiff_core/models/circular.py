"""Circular padding along the time axis, for seamless loops.

Inside `circular_time`, every convolution that pads its input pads the width (time) with frames from the opposite end.
The height (frequency) is still padded with zeros. The other layers of these networks do not depend on the position of a
frame: normalization, attention without position embeddings, and nearest-neighbor upsampling. Rolling the input along
time by a multiple of the network's stride therefore rolls the output by the same amount. A generated image continues
from its last frame to its first without a seam.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from diffusers.models.downsampling import Downsample2D, FirDownsample2D, KDownsample2D
from diffusers.models.upsampling import FirUpsample2D, KUpsample2D
from torch import nn
from torch.nn import functional as F

ConvForward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

UNSUPPORTED_LAYERS = (nn.ConvTranspose2d, FirDownsample2D, KDownsample2D, FirUpsample2D, KUpsample2D)
"""Layers that implement their own padding. No published network of teticio/audio-diffusion contains such a layer."""


@contextmanager
def circular_time(*networks: nn.Module) -> Iterator[None]:
    """Pad the convolutions of `networks` circularly in time within the block.

    The width of the input must be divisible by the network's stride. Each layer with a stride checks its own input.

    The block changes the network itself. If threads share a network, only one thread may enter the block, and no other
    thread may use the network meanwhile. Entering takes about a microsecond per layer, so a sampler can enter the block
    for every batch. After the block, the network pads with zeros again. `torch.compile` compiles the network once for
    each padding mode.

    Args:
        *networks: diffusers' UNet2DModel, UNet2DConditionModel or AutoencoderKL.

    Raises:
        ValueError: If a network contains a layer that cannot pad circularly.
        RuntimeError: If a network is already inside such a block.
    """
    convolutions = {
        convolution: forward for network in networks for convolution, forward in _circular_convolutions(network)
    }
    entered: list[nn.Conv2d] = []
    try:
        for convolution, forward in convolutions.items():
            if "_conv_forward" in vars(convolution):
                raise RuntimeError(
                    "the network is circular in time already: leave the outer block first, "
                    "and do not share the network with other threads"
                )
            vars(convolution)["_conv_forward"] = forward
            entered.append(convolution)
        yield
    finally:
        for convolution in entered:
            del vars(convolution)["_conv_forward"]


def _circular_convolutions(network: nn.Module) -> Iterator[tuple[nn.Conv2d, ConvForward]]:
    """Yield each convolution that pads in time, with the replacement for its `_conv_forward`."""
    padded_before = {
        module.conv
        for module in network.modules()
        if isinstance(module, Downsample2D) and module.use_conv and module.padding == 0
    }
    for name, module in network.named_modules():
        if isinstance(module, UNSUPPORTED_LAYERS):
            raise ValueError(f"layer {name} ({type(module).__name__}) cannot wrap in time")
        if not isinstance(module, nn.Conv2d):
            continue
        if module in padded_before:
            yield module, partial(_convolve_padded, module)
        elif module.padding[1]:
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise ValueError(f"layer {name} (padding {module.padding}, {module.padding_mode}) cannot wrap in time")
            yield module, partial(_convolve_unpadded, module)


def _convolve_unpadded(
    convolution: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Convolve x (batch, channels, height, width) after padding its width circularly."""
    assert not isinstance(convolution.padding, str)
    pad_height, pad_width = convolution.padding
    _check_width(x.shape[-1], convolution)
    padded = torch.cat([x[..., -pad_width:], x, x[..., :pad_width]], dim=-1)  # keeps the memory format, unlike F.pad
    return F.conv2d(padded, weight, bias, convolution.stride, (pad_height, 0), convolution.dilation, convolution.groups)


def _convolve_padded(
    convolution: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Convolve x after replacing its last column with its first column.

    Downsample2D with padding 0, as in the encoder of a VAE, has already appended the last column, which is zero.
    """
    _check_width(x.shape[-1] - 1, convolution)
    padded = torch.cat([x[..., :-1], x[..., :1]], dim=-1)
    return F.conv2d(
        padded, weight, bias, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    )


def _check_width(width: int, convolution: nn.Conv2d) -> None:
    stride = convolution.stride[1]
    if width % stride:
        raise ValueError(f"width {width} at a layer of stride {stride}: circular padding needs a multiple of {stride}")
