"""Sampling, decoding, synthesis and training on a CUDA GPU, compared with a CPU.

    pytest -m gpu tests/gpu

The tests need no fixture of other tests. With `--noconftest`, they run where only the core can be imported.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from audiodiff_core.diffusion.methods import METHODS, SchedulerName
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.diffusion.philox import Purpose, normals, words
from audiodiff_core.latents import decode_latents, encode_latents
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.models import PresetName, build_network, build_vae, objective_for
from audiodiff_core.pipeline import PEAK, Loop, LoopPipeline
from audiodiff_core.pipeline.codec import placed_vae
from audiodiff_core.pipeline.rendering import Renderer
from audiodiff_core.pipeline.running import Runner
from audiodiff_core.sampling import ExecutionProfile, Finished, GenerateRequest, Item, Precision, Sampler
from audiodiff_core.training import TrainBatch, TrainState, train_step, with_draws
from audiodiff_core.training.vae_losses import VaeObjective
from audiodiff_core.training.vae_state import VaeTrainState
from audiodiff_core.training.vae_step import train_vae_step
from audiodiff_core.vocoder import GriffinLim
from tests.benchmarks.gpu.equality import bytes_alone, bytes_in_company, bytes_in_slot

pytestmark = pytest.mark.gpu

GPU = "cuda"
SIDE, DIM = 32, 8
MEL = MelConfig(x_res=SIDE, y_res=SIDE, hop_length=1_024)
EPSILON = Objective(prediction_type="epsilon", zero_terminal_snr=False)
FLOW = Objective(prediction_type="flow")


@lru_cache
def vae() -> Any:
    torch.manual_seed(1)
    return build_vae("vae-tiny", MEL)


@lru_cache
def network(preset: PresetName = "tiny") -> Any:
    """Return a network whose output is scaled down, so that sampling does not amplify rounding."""
    torch.manual_seed(0)
    unet = build_network(
        preset,
        MEL,
        vae() if preset == "tiny-latent" else None,
        DIM if preset == "tiny-conditional" else None,
    )
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.1)
        unet.conv_out.bias.mul_(0.1)
    return unet


def profile(precision: Precision = "fp32", device: str = GPU, **more: Any) -> ExecutionProfile:
    return ExecutionProfile(**{"batch_size": 4, "precision": precision, "device": device, **more})


def sampler(of: ExecutionProfile, preset: PresetName = "tiny", objective: Objective = EPSILON) -> Sampler:
    return Sampler(network(preset), objective.scheduler(), of)


def pipeline(of: ExecutionProfile, latent: bool = False) -> LoopPipeline:
    scheduler = EPSILON.model_copy(update={"clip_sample": not latent}).scheduler()
    return LoopPipeline(network("tiny-latent" if latent else "tiny"), scheduler, MEL, of, vae=vae() if latent else None)


def item(seed: int = 1, steps: int = 8, scheduler: SchedulerName = "ddim", width: int = SIDE, **more: Any) -> Item:
    return Item(GenerateRequest(seed=seed, steps=steps, scheduler=scheduler, **more), width)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guided(seed: int, **more: Any) -> Item:
    return replace(item(seed, guidance_scale=3.0, guidance_rescale=0.7, **more), encoding=normal(seed, DIM))


def masked(seed: int, **more: Any) -> Item:
    keep = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    keep[:, : SIDE // 2] = True
    return replace(item(seed, **more), clean=normal(seed, 1, SIDE, SIDE).clamp(-1, 1), keep=keep)


def inverted(seed: int) -> Item:
    clean = normal(seed, 1, SIDE, SIDE).clamp(-1, 1)
    return replace(item(seed), clean=clean, inverted=True, refinements=2)


def samples(of: Sampler, items: list[Item]) -> torch.Tensor:
    made = dict(of.sample(items))
    return torch.stack([made[one] for one in items])


def picture() -> Any:
    """Return the image (SIDE, SIDE) of a decaying chord with noise."""
    seconds = np.arange(MEL.slice_size) / MEL.sample_rate
    chord = sum(np.sin(2 * np.pi * pitch * seconds) for pitch in (220, 277, 330, 880))
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(seconds))
    audio = (chord * np.exp(-2 * seconds) + noise).astype(np.float32)
    return Mel(MEL).images(audio[np.newaxis])[0]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise an error in operations that wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "fp32"])
def test_a_loop_is_made(precision: Precision, latent: bool) -> None:
    (loop,) = pipeline(profile(precision), latent).generate([GenerateRequest(seed=3, steps=4)])
    assert loop.image.shape == (SIDE, SIDE)
    assert loop.audio.shape == (MEL.audio_size,)
    assert np.abs(loop.audio).max() == pytest.approx(PEAK, abs=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bytes_are_those_of_the_item_alone_in_each_slot(precision: Precision) -> None:
    of, wanted = sampler(profile(precision)), item(scheduler="dpm++_sde")
    alone = bytes_alone(of, wanted)
    assert [bytes_in_slot(of, wanted, slot) == alone for slot in range(4)] == [True] * 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_those_who_join_and_are_cancelled_change_nothing(precision: Precision) -> None:
    of, wanted = sampler(profile(precision)), item(scheduler="dpm++_sde")
    assert bytes_in_company(of, wanted) == bytes_alone(of, wanted)


@pytest.mark.parametrize("name", METHODS)
def test_samples_are_those_of_a_cpu(name: SchedulerName) -> None:
    objective = FLOW if name.startswith("flow") else EPSILON
    items = [item(seed, scheduler=name) for seed in range(3)]
    gpu, cpu = (samples(sampler(profile(device=device), objective=objective), items) for device in (GPU, "cpu"))
    torch.testing.assert_close(gpu, cpu, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("preset", "items"),
    [
        ("tiny-conditional", [guided(1), guided(2, scheduler="unipc"), item(3)]),
        ("tiny", [masked(1), masked(2, scheduler="dpm++_sde"), item(3), item(4, seamless=True)]),
        ("tiny", [inverted(1), inverted(2)]),
    ],
    ids=["guidance", "masks", "inversion"],
)
def test_guidance_masks_and_inversions_are_those_of_a_cpu(preset: PresetName, items: list[Item]) -> None:
    gpu, cpu = (samples(sampler(profile(device=device), preset), items) for device in (GPU, "cpu"))
    torch.testing.assert_close(gpu, cpu, atol=1e-3, rtol=0)


def test_images_of_an_autoencoder_in_bf16_are_close_to_fp32() -> None:
    images = normal(0, 3, 1, SIDE, SIDE).clamp(-1, 1)
    latents = encode_latents(placed_vae(vae(), profile("fp32")), images)
    exact, rough = (
        decode_latents(placed_vae(vae(), profile(precision)), latents, batch_size=4) for precision in ("fp32", "bf16")
    )
    assert float((rough - exact).norm() / exact.norm()) < 0.1


def test_audio_of_the_vocoder_fits_the_image_as_on_a_cpu() -> None:
    image = picture()
    errors = {}
    for device in (GPU, "cpu"):
        with profile(device=device).applied():
            audio = GriffinLim(MEL, device)(image, [5])
        errors[device] = float(np.abs(Mel(MEL).images(audio)[0].astype(int) - image).mean())
    assert errors[GPU] == pytest.approx(errors["cpu"], rel=0.15)


@pytest.mark.parametrize("latent", [False, True])
def test_rendering_beside_sampling_changes_nothing(latent: bool) -> None:
    requests = [GenerateRequest(seed=seed, steps=2 + 2 * seed, seamless=seed % 2 == 1) for seed in range(6)]
    made = []
    for beside in (False, True):
        maker = pipeline(profile(), latent)
        renderer = Renderer(maker.codec, maker.vocoder, maker.geometry)
        maker._runner = Runner(maker.sampler, renderer, beside=beside)
        made.append({loop.number: content(loop) for loop in maker.generate(requests)})
    assert made[0] == made[1]


def content(loop: Loop) -> tuple[bytes, bytes]:
    return loop.image.tobytes(), loop.audio.tobytes()


def test_a_step_does_not_wait_for_the_gpu() -> None:
    conditional, plain = (sampler(profile(batch_size=8), preset).batch() for preset in ("tiny-conditional", "tiny"))
    for one in (guided(1), guided(2, scheduler="unipc"), item(3, scheduler="euler_a"), item(4, seamless=True)):
        conditional.add(one)
    for one in (masked(1), masked(2, scheduler="dpm++_sde"), item(3, scheduler="heun"), inverted(4)):
        plain.add(one)
    for batch in (conditional, plain):
        batch.step()  # the first call of a library waits
        with no_waiting():
            assert [batch.step() for _ in range(4)] == [[]] * 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_samples_are_close(precision: Precision) -> None:
    items = [item(seed, scheduler="dpm++_sde") for seed in range(6)]
    compiled, plain = (samples(sampler(profile(precision, compiled=flag)), items) for flag in (True, False))
    torch.testing.assert_close(compiled, plain, atol=1e-3 if precision == "fp32" else 0.1, rtol=0)


def test_a_compiled_network_is_called_twice_in_a_step() -> None:
    """Guidance at batch size 1 takes two calls, whose predictions are needed together."""
    compiled, plain = (
        samples(sampler(profile(batch_size=1, compiled=flag), "tiny-conditional"), [guided(1)])
        for flag in (True, False)
    )
    torch.testing.assert_close(compiled, plain, atol=1e-3, rtol=0)


def test_an_item_is_cancelled_after_a_compiled_step_of_another_width() -> None:
    of, wanted = sampler(profile(compiled=True)), item(2, width=2 * SIDE)
    batch, cancelled = of.batch(), item(1)
    batch.add(cancelled)
    batch.add(wanted)
    batch.step()
    assert batch.cancel(cancelled)
    outcomes = []
    while len(batch):
        outcomes += batch.step()
    assert [isinstance(outcome, Finished) for outcome in outcomes] == [True]


def accelerated(precision: str = "no") -> Accelerator:
    """Return an accelerator of this precision, whatever the accelerators of earlier tests."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision=precision)


def training_batch(conditional: bool = False) -> TrainBatch:
    images = torch.from_numpy(np.repeat(picture(), 8, axis=0))
    return TrainBatch(torch.arange(8), images, normal(0, 8, DIM) if conditional else None)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_lowers_the_loss(precision: str) -> None:
    accelerator = accelerated(precision)
    torch.manual_seed(0)
    state = TrainState(accelerator, build_network("tiny", MEL), EPSILON, 1e-3, seed=0)
    batch = with_draws(state, training_batch().to(GPU))
    losses = [train_step(accelerator, state, [batch], 1e-3)[0] for _ in range(30)]
    assert float(losses[-1]) < 0.5 * float(losses[0])


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["tiny", "tiny-latent", "tiny-conditional", "flow"])
def test_a_training_step_does_not_wait_for_the_gpu(kind: str, precision: str) -> None:
    accelerator = accelerated(precision)
    preset: Any = "tiny" if kind == "flow" else kind
    objective = FLOW if kind == "flow" else objective_for(preset)
    of = copy.deepcopy(vae()) if kind == "tiny-latent" else None
    state = TrainState(accelerator, copy.deepcopy(network(preset)), objective, 1e-3, seed=0, vae=of)
    micro_batches = training_batch(conditional=kind == "tiny-conditional").to(GPU).split(4)
    train_step(accelerator, state, micro_batches, 1e-3)  # the first call of a library waits
    with no_waiting():
        results = [train_step(accelerator, state, micro_batches, 1e-3) for _ in range(2)]
    assert all(float(loss) > 0 for loss, _ in results)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_step_of_an_autoencoder_does_not_wait_for_the_gpu(precision: str) -> None:
    accelerator, objective = accelerated(precision), VaeObjective(adversarial_start=0)
    state = VaeTrainState(accelerator, copy.deepcopy(vae()), objective, 1e-3, seed=0, discriminator_channels=8)
    micro_batches = training_batch().to(GPU).split(4)
    train_vae_step(accelerator, state, micro_batches, 1e-3)
    with no_waiting():
        results = [train_vae_step(accelerator, state, micro_batches, 1e-3) for _ in range(2)]
    assert all(float(losses["reconstruction"]) > 0 for losses, _ in results)
    assert int(state.skipped) == 0


def on_disk(content: Any) -> Any:
    """Return what a checkpoint holds: contiguous tensors on the CPU."""
    if isinstance(content, torch.Tensor):
        return content.cpu().contiguous().clone()
    if isinstance(content, dict):
        return {name: on_disk(part) for name, part in content.items()}
    return [on_disk(part) for part in content] if isinstance(content, list) else content


@pytest.mark.parametrize("latent", [False, True])
def test_a_resumed_training_takes_the_same_step(latent: bool) -> None:
    accelerator = accelerated()
    preset: PresetName = "tiny-latent" if latent else "tiny"
    states = [
        TrainState(
            accelerator,
            copy.deepcopy(network(preset)),
            objective_for(preset),
            1e-3,
            seed=0,
            vae=copy.deepcopy(vae()) if latent else None,
        )
        for _ in range(2)
    ]
    state, resumed = states
    batch = training_batch().to(GPU)
    train_step(accelerator, state, [batch], 1e-3)
    moments = state.optimizer_state_dict()
    assert all(value.is_cuda for values in moments["state"].values() for value in values.values())
    resumed.load_state_dict(on_disk(state.state_dict()))
    resumed.load_ema_state_dict(on_disk(state.ema_state_dict()))
    resumed.load_optimizer_state_dict(on_disk(moments))
    resumed.load_progress(state.progress())
    for each in states:
        train_step(accelerator, each, [batch], 1e-3)
    for name, weight in state.bare.state_dict().items():
        torch.testing.assert_close(resumed.bare.state_dict()[name], weight, atol=1e-5, rtol=1e-4)


def test_a_resumed_autoencoder_takes_a_step() -> None:
    accelerator, objective = accelerated(), VaeObjective(adversarial_start=0)
    state, resumed = (
        VaeTrainState(accelerator, copy.deepcopy(vae()), objective, 1e-3, seed=0, discriminator_channels=8)
        for _ in range(2)
    )
    batch = training_batch().to(GPU)
    train_vae_step(accelerator, state, [batch], 1e-3)
    resumed.load_state_dict(on_disk(state.state_dict()))
    resumed.load_optimizer_state_dict(on_disk(state.optimizer_state_dict()))
    train_vae_step(accelerator, resumed, [batch], 1e-3)
    assert int(resumed.skipped) == 0


def test_overlapping_blocks_share_the_arithmetic() -> None:
    cudnn: Any = torch.backends.cudnn
    before = torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision
    first, second = profile("tf32").applied(), profile("tf32").applied()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision) == ("tf32", "tf32")
    second.__exit__(None, None, None)
    assert (torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision) == before


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_gradient_that_is_not_finite_changes_nothing(value: str) -> None:
    accelerator = accelerated()
    state = TrainState(accelerator, copy.deepcopy(network()), EPSILON, 1e-3, seed=0)
    batch = training_batch().to(GPU)
    train_step(accelerator, state, [batch], 1e-3)
    before = {name: weight.clone() for name, weight in state.bare.state_dict().items()}
    moments = copy.deepcopy(state.optimizer.optimizer.state_dict()["state"])
    state.bare.conv_in.weight.register_hook(lambda gradient: gradient * float(value))
    with no_waiting():
        train_step(accelerator, state, [batch], 1e-3)
    assert all(torch.equal(weight, before[name]) for name, weight in state.bare.state_dict().items())
    for number, of_weight in state.optimizer.optimizer.state_dict()["state"].items():
        assert all(torch.equal(values, moments[number][name]) for name, values in of_weight.items())
    assert (state.step, int(state.skipped)) == (2, 1)


def test_noise_is_drawn_on_the_gpu_as_on_a_cpu() -> None:
    numbers, seed = torch.tensor([0, 5, 2**40 + 1]), 2**62 + 3
    pinned = TrainBatch(numbers, None).pin_memory()
    assert pinned.numbers.is_pinned()
    with no_waiting():
        on_gpu = pinned.to(GPU).numbers
        drawn = words(seed, on_gpu, Purpose.SCALARS, 1_000, GPU)
        noise = normals(seed, on_gpu, Purpose.NOISE, (1, SIDE, SIDE), GPU)
    assert drawn.device.type == noise.device.type == GPU
    assert torch.equal(drawn.cpu(), words(seed, numbers, Purpose.SCALARS, 1_000, "cpu"))
    expected = normals(seed, numbers, Purpose.NOISE, (1, SIDE, SIDE), "cpu")
    torch.testing.assert_close(noise.cpu(), expected, atol=1e-5, rtol=1e-5)
