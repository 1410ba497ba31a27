"""Circular time: rolled input gives rolled output, and networks are unchanged afterwards."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from torch import nn

from audiodiff_core.models.circular import circular_time

Network = tuple[Any, Callable[[torch.Tensor], torch.Tensor], tuple[int, ...], int, int]
WIDTHS = {"norm_num_groups": 4, "layers_per_block": 1, "in_channels": 1, "out_channels": 1}


def unconditional() -> Network:
    unet = UNet2DModel(
        sample_size=(16, 32),
        block_out_channels=(8, 8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        **WIDTHS,
    )
    return unet, lambda x: unet(x, 500, return_dict=False)[0], (1, 1, 16, 32), 4, 4


def down_to_two_frames() -> Network:
    unet = UNet2DModel(
        sample_size=(16, 16),
        block_out_channels=(8,) * 4,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        **WIDTHS,
    )
    return unet, lambda x: unet(x, 500, return_dict=False)[0], (1, 1, 16, 16), 8, 8


def conditional() -> Network:
    unet = UNet2DConditionModel(
        sample_size=(16, 32),
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=10,
        attention_head_dim=4,
        **WIDTHS,
    )
    encoding = torch.randn(1, 1, 10, generator=torch.Generator().manual_seed(5))
    return unet, lambda x: unet(x, 500, encoding, return_dict=False)[0], (1, 1, 16, 32), 2, 2


def autoencoder() -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        latent_channels=1,
        **WIDTHS,
    )


def vae_encoder() -> Network:
    vae = autoencoder()
    return vae, lambda x: vae.encode(x).latent_dist.mean, (1, 1, 16, 32), 4, 1


def vae_decoder() -> Network:
    vae = autoencoder()
    return vae, lambda z: vae.decode(z, return_dict=False)[0], (1, 1, 4, 8), 1, 4


NETWORKS = [unconditional, down_to_two_frames, conditional, vae_encoder, vae_decoder]


@torch.inference_mode()
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("build", NETWORKS)
def test_rolled_input_gives_rolled_output(build: Callable[[], Network], channels_last: bool) -> None:
    torch.manual_seed(0)
    network, compute, shape, frames_in, frames_out = build()
    network.eval()
    x = torch.randn(shape)
    if channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    outside = compute(x)
    with circular_time(network):
        inside = compute(x)
        for times in (1, 2, 5):
            rolled = compute(x.roll(times * frames_in, -1))
            assert torch.allclose(rolled, inside.roll(times * frames_out, -1), rtol=0, atol=1e-5)
        assert not torch.allclose(compute(x.roll(frames_in, -2)), inside.roll(frames_out, -2), atol=1e-3), (
            "frequency has ends"
        )
    assert not torch.allclose(compute(x.roll(frames_in, -1)), outside.roll(frames_out, -1), atol=1e-3), (
        "outside, time has ends"
    )
    assert torch.equal(compute(x), outside)
    assert not any("_conv_forward" in vars(module) for module in network.modules())


@torch.inference_mode()
def test_the_middle_of_a_wide_image_is_the_same_inside_and_outside() -> None:
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)).eval()
    x = torch.randn(1, 1, 8, 32)
    outside = convolutions(x)
    with circular_time(convolutions):
        inside = convolutions(x)
    assert torch.allclose(inside[..., 2:-2], outside[..., 2:-2], atol=1e-6)
    assert not torch.allclose(inside[..., 0], outside[..., 0], atol=1e-3)


@torch.inference_mode()
def test_a_single_frame_is_its_own_neighbour() -> None:
    convolution = nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 4, 1)
    repeated = convolution(x.expand(-1, -1, -1, 3))[..., 1:2]
    with circular_time(convolution):
        assert torch.allclose(convolution(x), repeated, atol=1e-6)


def test_gradients_flow_around_the_circle() -> None:
    convolution = nn.Conv2d(1, 1, 3, padding=1)
    x = torch.zeros(1, 1, 4, 8, requires_grad=True)
    with circular_time(convolution):
        convolution(x)[0, 0, 1, 0].backward()
    assert x.grad is not None
    assert x.grad[0, 0, 1, -1] != 0


def test_leaves_the_network_as_it_was_after_an_error() -> None:
    network = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(ZeroDivisionError), circular_time(network):
        raise ZeroDivisionError
    assert "_conv_forward" not in vars(network)


def test_refuses_to_be_entered_twice_and_leaves_the_first_in_force() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    x = torch.randn(1, 1, 4, 8)
    with circular_time(network):
        inside = network(x)
        with pytest.raises(RuntimeError, match="circular in time already"), circular_time(network):
            pass
        assert torch.equal(network(x), inside)
    assert not torch.equal(network(x), inside)


@torch.inference_mode()
def test_a_width_that_a_layer_cannot_halve_is_refused() -> None:
    _, compute, _, _, _ = build = vae_encoder()
    with circular_time(build[0]), pytest.raises(ValueError, match="width 15 at a layer of stride 2"):
        compute(torch.zeros(1, 1, 16, 30))


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose2d(1, 1, 4, padding=1), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")]
)
def test_a_layer_that_cannot_wrap_is_refused(layer: nn.Module) -> None:
    with (
        pytest.raises(ValueError, match=r"layer 1 .* cannot wrap in time"),
        circular_time(nn.Sequential(nn.Identity(), layer)),
    ):
        pass


@torch.inference_mode()
def test_a_compiled_network_follows() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1)).eval()
    compiled = torch.compile(network, backend="eager")
    x = torch.randn(1, 1, 8, 16)
    outside = network(x)
    assert torch.allclose(compiled(x), outside, atol=1e-6)
    with circular_time(network):
        inside = network(x)
        assert torch.allclose(compiled(x), inside, atol=1e-6)
    assert torch.allclose(compiled(x), outside, atol=1e-6)
    assert not torch.allclose(inside, outside, atol=1e-3)
