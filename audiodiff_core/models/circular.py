"""Networks on a circle of time: inside `circular_time` an image's last frame is the neighbour of its first.

A convolution that pads then pads the width (time) with the frames of the other end, and the height (frequency) with zeros as always.
Normalisation, attention without positions and nearest-neighbour upsampling know no ends, so a network of these layers then treats
all frames alike: rolled along time by whole strides, its input gives the same output, rolled. What it makes meets itself at the wrap.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from diffusers.models.downsampling import Downsample2D, FirDownsample2D, KDownsample2D
from diffusers.models.upsampling import FirUpsample2D, KUpsample2D
from torch import nn
from torch.nn import functional as F

Convolve = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

UNSUPPORTED = (nn.ConvTranspose2d, FirDownsample2D, KDownsample2D, FirUpsample2D, KUpsample2D)
"""Layers that pad in ways of their own; no published network of the original's has one."""


@contextmanager
def circular_time(*networks: nn.Module) -> Iterator[None]:
    """All Conv2d of `networks` (diffusers' UNet2DModel, UNet2DConditionModel, AutoencoderKL) wrap in time within the block, as before after it.

    Widths must divide by the network's stride all the way down, which is checked where a layer halves them. It is the network's state:
    one that several threads share may be entered by one of them only, while no other computes with it. Entering takes about a
    microsecond a layer, so a sampler can do so for each batch; a network outside costs nothing. `torch.compile` recompiles once for either.

    Raises ValueError where a network has a layer that cannot wrap, RuntimeError where one is entered already.
    """
    convolutions = {convolution: wrap for network in networks for convolution, wrap in _wrapped(network)}
    entered: list[nn.Conv2d] = []
    try:
        for convolution, wrap in convolutions.items():
            if "_conv_forward" in vars(convolution):
                raise RuntimeError(
                    "the network is circular in time already: it was entered before, perhaps by another thread"
                )
            vars(convolution)["_conv_forward"] = wrap
            entered.append(convolution)
        yield
    finally:
        for convolution in entered:
            del vars(convolution)["_conv_forward"]


def _wrapped(network: nn.Module) -> Iterator[tuple[nn.Conv2d, Convolve]]:
    """The convolutions whose result depends on padding in time, each with what takes the place of its `_conv_forward`."""
    padded_before = {
        module.conv
        for module in network.modules()
        if isinstance(module, Downsample2D) and module.use_conv and module.padding == 0
    }
    for name, module in network.named_modules():
        if isinstance(module, UNSUPPORTED):
            raise ValueError(f"layer {name} ({type(module).__name__}) cannot wrap in time")
        if not isinstance(module, nn.Conv2d):
            continue
        if module in padded_before:
            yield module, partial(_after_zero_column, module)
        elif module.padding[1]:
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise ValueError(f"layer {name} (padding {module.padding}, {module.padding_mode}) cannot wrap in time")
            yield module, partial(_between_ends, module)


def _between_ends(
    convolution: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """A convolution that pads by itself: x (batch, channels, height, width), lengthened in time by the padding's width at each end."""
    assert not isinstance(convolution.padding, str)
    high, wide = convolution.padding
    _check_width(x.shape[-1], convolution)
    ends_meet = torch.cat([x[..., -wide:], x, x[..., :wide]], dim=-1)  # keeps the memory format, F.pad does not
    return F.conv2d(ends_meet, weight, bias, convolution.stride, (high, 0), convolution.dilation, convolution.groups)


def _after_zero_column(
    convolution: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The convolution of a Downsample2D without padding (the VAE encoder's), which gets x with a column of zeros appended: the first frame belongs there."""
    _check_width(x.shape[-1] - 1, convolution)
    ends_meet = torch.cat([x[..., :-1], x[..., :1]], dim=-1)
    return F.conv2d(
        ends_meet, weight, bias, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    )


def _check_width(width: int, convolution: nn.Conv2d) -> None:
    if width % convolution.stride[1]:
        raise ValueError(
            f"width {width} at a layer that keeps every {convolution.stride[1]}th frame: a circle needs a multiple of it"
        )
