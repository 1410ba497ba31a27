"""Latents: scaled output of the autoencoder, independent of the other images of a call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from audiodiff_core.latents import decode_latents, encode_latents, latent_factor


@pytest.fixture(scope="module")
def vae(make_vae: Callable[[int], Any]) -> Any:
    return make_vae(0)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand((5, 1, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_by_hand(vae: Any, images: torch.Tensor) -> None:
    assert latent_factor(vae) == 2
    with torch.inference_mode():
        distribution = vae.encode(images[:1]).latent_dist
        mode = distribution.mode() * 0.18215
        drawn = distribution.sample(torch.Generator().manual_seed(4)) * 0.18215
        decoded = vae.decode(mode / 0.18215).sample
    torch.testing.assert_close(encode_latents(vae, images[:1]), mode)
    torch.testing.assert_close(encode_latents(vae, images[:1], [torch.Generator().manual_seed(4)]), drawn)
    torch.testing.assert_close(decode_latents(vae, mode), decoded)
    assert decoded.shape == (1, 1, 32, 32)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_no_item_depends_on_its_neighbours(vae: Any, images: torch.Tensor, batch_size: int) -> None:
    def generators(seeds: range) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = encode_latents(vae, images, generators(range(5)), batch_size)
    alone = encode_latents(vae, images[3:4], generators(range(3, 4)), batch_size)
    assert torch.equal(together[3:4], alone)
    assert torch.equal(decode_latents(vae, together, batch_size)[3:4], decode_latents(vae, alone, batch_size))
