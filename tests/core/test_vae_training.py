"""Training of a VAE on real mel images.

The VAE reconstructs the images, and its latents have unit variance. The result does not depend on the split into
batches.
"""

import io
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from audiodiff_core.latents.posteriors import (
    drawn_latents,
    measure_scaling_factor,
    posterior_moments,
    set_scaling_factor,
)
from audiodiff_core.mel import Images, Mel, MelConfig, to_model
from audiodiff_core.mel.slices import mel_slices
from audiodiff_core.models import build_vae
from audiodiff_core.training import TrainBatch
from audiodiff_core.training.vae_losses import (
    PatchDiscriminator,
    VaeObjective,
    discriminator_losses,
    generator_losses,
    kl_losses,
    reconstruction_losses,
    spectral_losses,
)
from audiodiff_core.training.vae_state import VaeTrainState, check_sides
from audiodiff_core.training.vae_step import train_vae_step
from tests.rare import rare

MEL = MelConfig(x_res=32, y_res=32, hop_length=1_024)
WITHOUT = VaeObjective(adversarial_weight=0)
JUDGED = VaeObjective(adversarial_start=1)


@pytest.fixture(scope="module")
def images(loop_files: list[Path]) -> Images:
    """Return the first slices of the shipped loops, (n, 32, 32)."""
    mel = Mel(MEL)
    return np.stack(
        [piece.image for file in loop_files for piece, _ in zip(mel_slices(file, mel), range(2), strict=False)]
    )


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def new_state(accelerator: Accelerator, objective: VaeObjective) -> VaeTrainState:
    torch.manual_seed(0)
    return VaeTrainState(accelerator, build_vae("vae-tiny", MEL), objective, 1e-3, seed=0, discriminator_channels=8)


def batch_of(images: Images, numbers: list[int]) -> TrainBatch:
    return TrainBatch(torch.tensor(numbers), torch.from_numpy(images[[number % len(images) for number in numbers]]))


def stepped(
    accelerator: Accelerator, state: VaeTrainState, micro_batches: list[TrainBatch], rate: float
) -> tuple[dict[str, float], float]:
    """Take an optimizer step, and return its losses by name and the norm of its gradient."""
    losses, norm = train_vae_step(accelerator, state, micro_batches, rate)
    assert {value.shape for value in (*losses.values(), norm)} == {()}
    return {name: float(value) for name, value in losses.items()}, float(norm)


@torch.no_grad()
def error(vae: Any, images: Images) -> float:
    values = to_model(torch.from_numpy(images).unsqueeze(1))
    return float((vae.decode(vae.encode(values).latent_dist.mode()).sample - values).abs().mean())


@pytest.mark.soak_short
def test_a_tiny_vae_learns_real_images(accelerator: Accelerator, images: Images) -> None:
    state = new_state(accelerator, VaeObjective(adversarial_start=25))
    before = error(state.bare, images)
    seen = [
        stepped(accelerator, state, [batch_of(images, list(range(8 * step, 8 * step + 8)))], 3e-3)[0]
        for step in range(30)
    ]
    after = error(state.bare, images)
    assert after < 0.6 * before
    assert seen[-1]["spectral"] < 0.7 * seen[0]["spectral"]
    assert "adversarial" not in seen[24]
    assert {"adversarial", "discriminator"} <= seen[25].keys()

    state.bare.load_state_dict(state.ema_state_dict())
    assert error(state.bare, images) < 0.8 * before
    factor = set_scaling_factor(state.bare, [images[:5], images[5:]])
    assert state.bare.config.scaling_factor == factor
    moments = posterior_moments(state.bare, torch.from_numpy(images))
    latents = drawn_latents(
        moments, torch.randn(moments[:, 0].shape, generator=torch.Generator().manual_seed(0)), factor
    )
    assert float(latents.std()) == pytest.approx(1, abs=0.03)


def test_scaling_factor_by_hand() -> None:
    mean, deviation = torch.tensor([1.0, 3.0, 5.0, 7.0]).reshape(4, 1, 1, 1), torch.full((4, 1, 1, 1), 2.0)
    moments = torch.stack([mean, deviation], dim=1)
    assert measure_scaling_factor([moments[:1], moments[1:]]) == pytest.approx((5 + 4) ** -0.5)
    with pytest.raises(ValueError, match="at least one image"):
        measure_scaling_factor([])
    with pytest.raises(ValueError, match=r"variance is 0\.0"):
        measure_scaling_factor([torch.zeros(2, 2, 1, 4, 4)])


def test_halves_are_one_whole_batch(accelerator: Accelerator, images: Images) -> None:
    ends = []
    for split in ([list(range(8))], [list(range(3)), list(range(3, 8))]):
        state = new_state(accelerator, JUDGED)
        steps = [stepped(accelerator, state, [batch_of(images, numbers) for numbers in split], 1e-4) for _ in range(2)]
        ends.append((steps, {name: weight.clone() for name, weight in state.state_dict().items()}))
    (whole, weights), (halves, others) = ends
    for (losses, norm), (other_losses, other_norm) in zip(whole, halves, strict=True):
        assert other_losses == pytest.approx(losses, rel=1e-4, abs=1e-6)
        assert other_norm == pytest.approx(norm, rel=1e-3)
    assert "discriminator" in whole[1][0]
    for name, weight in weights.items():
        # A step of Adam changes a weight by 1e-4 for any gradient.
        torch.testing.assert_close(others[name], weight, atol=2.5e-4, rtol=0)


def test_the_vae_learns_nothing_from_the_discriminator_before_its_start(
    accelerator: Accelerator, images: Images
) -> None:
    state = new_state(accelerator, JUDGED)
    before = {name: weight.clone() for name, weight in state.state_dict().items()}
    train_vae_step(accelerator, state, [batch_of(images, [0, 1])], 1e-3)
    changed = {name for name, weight in state.state_dict().items() if not torch.equal(weight, before[name])}
    assert any(name.startswith("vae.") for name in changed)
    assert not any(name.startswith("discriminator.") for name in changed)
    train_vae_step(accelerator, state, [batch_of(images, [0, 1])], 1e-3)
    changed = {name for name, weight in state.state_dict().items() if not torch.equal(weight, before[name])}
    assert any(name.startswith("discriminator.") for name in changed)


@pytest.mark.parametrize("steps", [rare(1), 2])
def test_a_state_goes_round(accelerator: Accelerator, images: Images, steps: int) -> None:
    """Check states saved before and after the start of the discriminator in the second step."""
    state, fresh, unsaved = (new_state(accelerator, JUDGED) for _ in range(3))
    for _ in range(steps):
        train_vae_step(accelerator, unsaved, [batch_of(images, [0, 1, 2])], 1e-3)
        train_vae_step(accelerator, state, [batch_of(images, [0, 1, 2])], 1e-3)
    fresh.load_state_dict({name: weight.clone() for name, weight in state.state_dict().items()})
    fresh.load_ema_state_dict(state.ema_state_dict())
    saved = io.BytesIO()
    torch.save(state.optimizer_state_dict(), saved)
    saved.seek(0)
    fresh.load_optimizer_state_dict(torch.load(saved, weights_only=True))
    fresh.load_progress(state.progress())
    for train_state in (state, fresh, unsaved):
        for _ in range(2):
            train_vae_step(accelerator, train_state, [batch_of(images, [3, 4, 5])], 1e-3)
    assert fresh.step == state.step == steps + 2
    assert all(torch.equal(weight, fresh.state_dict()[name]) for name, weight in state.state_dict().items())
    assert all(torch.equal(weight, unsaved.state_dict()[name]) for name, weight in state.state_dict().items()), (
        "saving changes nothing"
    )
    assert all(torch.equal(weight, fresh.ema_state_dict()[name]) for name, weight in state.ema_state_dict().items())


@pytest.mark.parametrize("network", ["vae", "discriminator"])
def test_a_gradient_that_is_not_finite_changes_neither_network(
    accelerator: Accelerator, images: Images, network: str
) -> None:
    state = new_state(accelerator, VaeObjective(adversarial_start=0))
    train_vae_step(accelerator, state, [batch_of(images, [0, 1])], 1e-3)
    weight = {"vae": state.bare.quant_conv.weight, "discriminator": state.bare_discriminator.verdict.weight}[network]
    broken = weight.register_hook(lambda gradient: gradient * float("inf"))
    before = copied(state)
    losses, norm = stepped(accelerator, state, [batch_of(images, [0, 1])], 1e-3)
    broken.remove()
    assert {"adversarial", "discriminator"} <= losses.keys()
    assert math.isfinite(norm) == (network == "discriminator")
    after = copied(state)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert (state.step, state.ema.steps, int(state.skipped)) == (2, 2, 1)
    train_vae_step(accelerator, state, [batch_of(images, [0, 1])], 1e-3)
    assert int(state.skipped) == 1
    assert not any(
        torch.equal(value, before[name]) for name, value in copied(state).items() if "conv_in.weight" in name
    )


def copied(state: VaeTrainState) -> dict[str, torch.Tensor]:
    """Return copies of the weights, and of the moments and step counts of both optimizers."""
    values = {name: weight.clone() for name, weight in state.state_dict().items()}
    for part, optimizer in state.optimizer_state_dict().items():
        for weight, moments in optimizer["state"].items():
            values |= {f"{part}.{weight}.{name}": moment.clone() for name, moment in moments.items()}
    return values


def test_what_blurs_or_shifts_costs_more_than_its_mean_error(images: Images) -> None:
    clean = to_model(torch.from_numpy(images).unsqueeze(1))
    assert float(spectral_losses(clean, clean).max()) == 0
    blurred = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(clean, (3, 3, 0, 0), mode="replicate"), (1, 7), stride=1
    )
    darker = clean + (blurred - clean).abs().mean()
    assert float(reconstruction_losses(darker, clean).mean()) == pytest.approx(
        float(reconstruction_losses(blurred, clean).mean()), rel=1e-4
    )
    assert float(spectral_losses(blurred, clean).mean()) > 3 * float(spectral_losses(darker, clean).mean())
    value = clean.clone().requires_grad_()
    spectral_losses(value, clean).sum().backward()
    assert value.grad is not None
    assert value.grad.isfinite().all()


def test_losses_by_hand() -> None:
    of_images, of_made = torch.tensor([2.0, 0.5]).reshape(2, 1, 1, 1), torch.tensor([-3.0, 0.5]).reshape(2, 1, 1, 1)
    assert discriminator_losses(of_images, of_made).tolist() == pytest.approx([0, (0.5 + 1.5) / 2])
    assert generator_losses(of_made).tolist() == pytest.approx([3, -0.5])
    vae = build_vae("vae-tiny", MEL)
    posterior = vae.encode(torch.zeros(2, 1, 32, 32)).latent_dist
    by_hand = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).flatten(1).sum(1) / 1_024
    torch.testing.assert_close(kl_losses(posterior, 1_024), by_hand)


def test_a_verdict_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    judge, pictures = PatchDiscriminator(8), torch.randn(3, 1, 32, 48)
    assert judge(pictures).shape == (3, 1, 2, 4)
    torch.testing.assert_close(judge(pictures)[1:2], judge(pictures[1:2]))


def test_half_precision_is_refused(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(accelerator), "mixed_precision", "fp16")
    with pytest.raises(ValueError, match="fp16 is too narrow for a VAE"):
        new_state(accelerator, WITHOUT)


def test_images_too_small_for_the_discriminator_are_refused(accelerator: Accelerator) -> None:
    small = build_vae("vae-tiny", MelConfig(x_res=32, y_res=16))
    with pytest.raises(
        ValueError, match="32x16 are too small for the discriminator, which needs 24: set adversarial_weight 0"
    ):
        VaeTrainState(accelerator, small, JUDGED, 1e-3, seed=0)
    VaeTrainState(accelerator, small, WITHOUT, 1e-3, seed=0)
    assert PatchDiscriminator(8)(torch.zeros(1, 1, 24, 24)).numel() == 1


@pytest.mark.parametrize("side", [16, 24])
def test_an_autoencoder_of_one_side_alone_is_known(side: int) -> None:
    """Check the `sample_size` of a square, which diffusers states as one number."""
    vae = build_vae("vae-tiny", MelConfig(x_res=32, y_res=32))
    vae.register_to_config(sample_size=side)
    check_sides(WITHOUT, vae)
    with pytest.raises(ValueError, match="images of 16x16 are too small") if side < 24 else nullcontext():
        check_sides(JUDGED, vae)
