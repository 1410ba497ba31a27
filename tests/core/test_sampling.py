"""Samples of items.

A sample does not depend on the other items of a call, bit for bit. A sample equals the image of diffusers' pipeline for
the same noise.
"""

import re
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic
import pytest
import torch
from diffusers import AudioDiffusionPipeline, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers import Mel as OracleMel

from audiodiff_core.diffusion.methods import METHODS, SchedulerName
from audiodiff_core.diffusion.noise_schedule import Schedule
from audiodiff_core.diffusion.objectives import Objective, SavedScheduler
from audiodiff_core.diffusion.seeds import derived
from audiodiff_core.diffusion.seeds import initial_noise as noise_stream
from audiodiff_core.mel import MelConfig, to_image
from audiodiff_core.sampling import REQUEST, ExecutionProfile, GenerateRequest, Item, Sampler, initial_noise
from audiodiff_core.sampling.network import Network
from tests.rare import rare

Bytes = npt.NDArray[np.uint8]
PROFILE = ExecutionProfile(batch_size=4)
EIGHT = ExecutionProfile(batch_size=8)
EPSILON = Objective(prediction_type="epsilon", zero_terminal_snr=False)


@pytest.fixture(scope="module")
def sampler(make_unet: Callable[[int], Any]) -> Sampler:
    return Sampler(make_unet(0), Objective().scheduler("ddim"), PROFILE)


@pytest.fixture(scope="module")
def conditional_unet(make_conditional: Callable[[int], Any]) -> Any:
    return make_conditional(0)


def item(seed: int, steps: int = 5, scheduler: SchedulerName = "ddim", width: int = 16, **more: Any) -> Item:
    parameters = {key: more.pop(key) for key in ("eta", "guidance_scale", "seamless") if key in more}
    return Item(GenerateRequest(seed=seed, steps=steps, scheduler=scheduler, **parameters), width, **more)


def picture(seed: int, width: int = 16) -> torch.Tensor:
    return torch.rand((1, 16, width), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def image_of(sampler: Sampler, wanted: Item) -> Bytes:
    ((_, made),) = sampler.sample([wanted])
    return to_image(made[0].numpy())


def bits_of(sampler: Sampler, wanted: Item, company: Iterable[Item]) -> bytes:
    (made,) = [sample for one, sample in sampler.sample(company) if one is wanted]
    return made.numpy().tobytes()


@pytest.mark.parametrize(
    "wanted", [item(3, 3), item(3, 3, "ddpm"), item(3, 3, "dpm++_sde")], ids=["ddim", "ddpm", "dpm++_sde"]
)
def test_an_image_does_not_depend_on_its_company(sampler: Sampler, wanted: Item) -> None:
    alone = bits_of(sampler, wanted, [wanted])
    companies = {
        "full batch": [wanted, item(10), item(11), item(12)],
        "last place": [item(10), item(11), item(12), wanted],
        "other steps": [item(10, 2), item(11, 5), wanted, item(12, 4)],
        "other schedulers": [item(10, 5, "ddpm"), wanted, item(11, 4, "unipc"), item(12, 4, "euler")],
        "takes a freed place": [
            item(10, 2),
            item(11, 4, "ddpm"),
            item(12, 5),
            item(13, 4),
            wanted,
            item(14, 2, "euler"),
        ],
        "other widths": [item(10, 3, width=32), wanted, item(11, 4, width=8), item(12, width=32)],
    }
    for name, company in companies.items():
        assert bits_of(sampler, wanted, company) == alone, name


def test_alone_and_at_each_place_of_a_batch_of_eight_with_guidance_masks_and_encodings(conditional_unet: Any) -> None:
    sampler = Sampler(conditional_unet, Objective().scheduler("ddim"), EIGHT)
    encodings = torch.randn(10, 8, generator=torch.Generator().manual_seed(5))
    keep = torch.zeros((16, 16), dtype=torch.bool)
    keep[3:9, :7] = True
    wanted = item(
        1, 4, "ddim", eta=0.5, guidance_scale=2.5, encoding=encodings[0], clean=picture(1), keep=keep, start_step=1
    )
    others = [
        item(seed, 2 + seed % 4, "euler" if seed % 2 else "ddpm", encoding=encodings[seed]) for seed in range(2, 6)
    ]
    others += [
        item(6, 3, encoding=encodings[6], guidance_scale=4.0),
        item(7, 3, encoding=encodings[7], clean=picture(7), start_step=2),
    ]
    alone = bits_of(sampler, wanted, [wanted])
    for place in range(len(others) + 1):
        assert bits_of(sampler, wanted, [*others[:place], wanted, *others[place:]]) == alone, place


def test_encodings_and_guidance_do_what_they_say(conditional_unet: Any) -> None:
    sampler = Sampler(conditional_unet, Objective().scheduler("ddim"), PROFILE)
    one, other = torch.randn(2, 8, generator=torch.Generator().manual_seed(5))

    def made(encoding: torch.Tensor, scale: float) -> torch.Tensor:
        ((_, sample),) = sampler.sample([item(0, 1, guidance_scale=scale, encoding=encoding)])
        return sample

    assert not torch.equal(made(one, 1.0), made(other, 1.0))
    nothing = made(torch.zeros(8), 1.0)
    assert torch.equal(made(one, 0.0), nothing)
    assert torch.equal(made(other, 0.0), nothing)
    # A single step of DDIM is linear in the prediction. Without clipping, guided samples lie on the straight line
    # through the two samples.
    scheduler = Objective().scheduler("ddim")
    scheduler.register_to_config(clip_sample=False)
    sampler = Sampler(conditional_unet, scheduler, PROFILE)
    torch.testing.assert_close(
        made(one, 3.0), made(one, 0.0) + 3 * (made(one, 1.0) - made(one, 0.0)), atol=1e-5, rtol=1e-5
    )


def test_guidance_works_in_batches_of_one(conditional_unet: Any) -> None:
    encoding = torch.ones(8)
    wanted = [item(seed, 3, guidance_scale=2.0, encoding=encoding) for seed in range(3)]
    one = dict(Sampler(conditional_unet, Objective().scheduler("ddim"), ExecutionProfile(batch_size=1)).sample(wanted))
    four = dict(Sampler(conditional_unet, Objective().scheduler("ddim"), PROFILE).sample(wanted))
    for wanted_item in wanted:
        torch.testing.assert_close(one[wanted_item], four[wanted_item], atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 7])
def test_an_image_does_not_depend_on_how_many_are_asked_for(sampler: Sampler, count: int) -> None:
    items = [item(seed, 2) for seed in range(count)]
    made = list(sampler.sample(items))
    assert {one for one, _ in made} == set(items)
    first = dict(made)[items[0]].numpy().tobytes()
    assert first == bits_of(sampler, items[0], [items[0]])


def test_every_part_of_a_request_matters(sampler: Sampler) -> None:
    different = [
        item(0),
        item(1),
        item(0, 8),
        *(item(0, scheduler=name) for name in METHODS if not name.startswith("flow") and name not in ("ddim", "heun")),
    ]
    different += [
        item(0, eta=0.5),
        item(0, seamless=True),
        item(0, width=32),
        item(0, window=1),
        item(0, clean=picture(0), start_step=2),
    ]
    samples = {sample.numpy().tobytes() for _, sample in sampler.sample(different)}
    assert len(samples) == len(different)


def test_short_requests_leave_first_and_items_are_taken_only_as_places_come_free(sampler: Sampler) -> None:
    taken: list[int] = []

    def endless() -> Any:
        for seed in range(100):
            taken.append(seed)
            yield item(seed, 2 if seed == 1 else 8)

    made = sampler.sample(endless())
    assert next(made)[0].request.seed == 1
    assert len(taken) == 4


def test_no_item_no_image(sampler: Sampler) -> None:
    assert list(sampler.sample([])) == []


@pytest.mark.parametrize("objective", [EPSILON, Objective()], ids=["epsilon-leading", "v-trailing"])
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_images_are_those_of_diffusers_pipeline(
    make_unet: Callable[[int], Any], tiny_mel: MelConfig, name: SavedScheduler, objective: Objective
) -> None:
    reference = AudioDiffusionPipeline(
        vqvae=None,
        unet=make_unet(1).eval(),
        mel=OracleMel(**tiny_mel.model_dump()),
        scheduler=objective.scheduler(name),
    )
    reference.set_progress_bar_config(disable=True)
    items = [item(seed, steps, name) for seed, steps in [(0, 5), (2**32 - 1, 4)]]
    for one, sample in Sampler(make_unet(1), objective.scheduler("ddpm"), PROFILE).sample(items):
        image = to_image(sample[0].numpy())
        (expected,), _ = reference(
            steps=one.request.steps,
            generator=noise_stream(one.request.seed),
            step_generator=derived(one.request.seed, "step"),
            return_dict=False,
        )
        assert image.std() > 10
        assert np.abs(np.asarray(expected).astype(int) - image).max() <= 1


def test_a_variation_starts_at_the_level_where_denoising_starts(sampler: Sampler) -> None:
    """Check a variation against the scheduler and add_noise of diffusers, from the same timestep on."""
    steps, start = 10, 6
    varied = item(4, steps, clean=picture(9), start_step=start)
    scheduler = Objective().scheduler("ddim")
    scheduler.set_timesteps(steps)
    noise = initial_noise(4, (1, 16, 16))
    sample = scheduler.add_noise(picture(9)[None], noise[None], scheduler.timesteps[start : start + 1])
    for timestep in scheduler.timesteps[start:]:
        answer = sampler.network(sample.expand(4, -1, -1, -1), torch.full((4,), float(timestep)))
        sample = scheduler.step(answer[:1], timestep, sample, return_dict=False)[0]
    ((_, made),) = sampler.sample([varied])
    torch.testing.assert_close(made, sample[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name", ["ddim", "ddpm", "dpm++", "dpm++_sde", "unipc", "euler", "euler_a", "heun", "flow_euler", "flow_heun"]
)
@pytest.mark.parametrize("start", [rare(0), 2])
def test_what_is_kept_is_the_clean_content_at_the_level_of_each_next_step(
    make_unet: Callable[[int], Any], name: SchedulerName, start: int
) -> None:
    """Check the input of the network in the kept region.

    At every call, the region holds the content at the noise level of the call. The result holds the exact content.
    """
    model_scheduler = FlowMatchEulerDiscreteScheduler() if name.startswith("flow") else EPSILON.scheduler("ddim")
    unet = make_unet(2)
    seen: list[tuple[torch.Tensor, float]] = []
    hook = unet.register_forward_pre_hook(lambda _, given: seen.append((given[0][:1].clone(), float(given[1][0]))))
    keep = torch.zeros((16, 16), dtype=torch.bool)
    keep[:, 5:11] = True
    clean, noise = picture(3), initial_noise(8, (1, 16, 16))
    given = item(8, 5, name, clean=clean, keep=keep, start_step=start, noise=noise)
    before = clean.clone(), noise.clone(), keep.clone()
    ((_, made),) = Sampler(unet, model_scheduler, PROFILE).sample([given])
    hook.remove()
    assert torch.equal(made[:, keep], clean[:, keep])
    assert not torch.equal(made[:, ~keep], clean[:, ~keep])
    assert all(torch.equal(one, other) for one, other in zip(before, (clean, noise, keep), strict=True))
    schedule = Schedule(model_scheduler, given.request)
    assert len(seen) == schedule.calls - schedule.begin(start)
    for sample, timestep in seen:
        share = (
            torch.tensor(timestep / 1_000)
            if name.startswith("flow")
            else (1 - model_scheduler.alphas_cumprod[int(timestep)]).sqrt()
        )
        signal = 1 - share if name.startswith("flow") else model_scheduler.alphas_cumprod[int(timestep)].sqrt()
        torch.testing.assert_close(sample[0, 0][keep], (signal * clean + share * noise)[0][keep], atol=2e-4, rtol=1e-4)


def test_kept_regions_of_any_batch_do_not_meet(sampler: Sampler) -> None:
    keeps = [torch.rand((16, 16), generator=torch.Generator().manual_seed(seed)) < 0.5 for seed in range(7)]
    items = [item(seed, 3, clean=picture(seed), keep=keep) for seed, keep in enumerate(keeps)]
    for one, sample in sampler.sample(items):
        assert one.keep is not None
        assert one.clean is not None
        assert torch.equal(sample[:, one.keep], one.clean[:, one.keep])


def test_seamless_items_are_circular(sampler: Sampler) -> None:
    """Check that rolled noise gives the rolled image only if the network wraps in time."""
    noise = initial_noise(0, (1, 16, 16))
    for seamless in (True, False):
        straight, rolled = (item(0, 2, seamless=seamless, noise=one) for one in (noise, noise.roll(4, dims=-1)))
        made = dict(sampler.sample([straight, rolled]))
        assert torch.allclose(made[straight].roll(4, dims=-1), made[rolled], atol=1e-4) == seamless


def test_initial_noise_is_that_of_a_seeded_torch_generator() -> None:
    expected = torch.randn(5, generator=torch.Generator().manual_seed(7))
    assert torch.equal(initial_noise(7, (5,)), expected)
    others = [torch.randn(5, generator=derived(seed, purpose)) for seed in (7, 8) for purpose in ("step", "phase")]
    others += [initial_noise(7, (5,), window) for window in (1, 2)]
    assert len({tuple(noise.tolist()) for noise in [expected, *others]}) == 7


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.takes_generator])
def test_all_noise_is_the_requests_own(make_unet: Callable[[int], Any], name: SchedulerName) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler() if name.startswith("flow") else EPSILON.scheduler("ddim")
    sampler = Sampler(make_unet(0), scheduler, PROFILE)
    wanted = item(5, 5, name, eta=1.0) if name == "ddim" else item(5, 5, name)
    torch.manual_seed(1)
    first = bits_of(sampler, wanted, [wanted])
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert bits_of(sampler, wanted, [wanted, item(6, 5, name)]) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_more_steps_than_levels_are_refused(make_unet: Callable[[int], Any]) -> None:
    scheduler = Objective(num_train_timesteps=20).scheduler("ddim")
    with pytest.raises(ValueError, match="steps 21: the model has 20 levels"):
        list(Sampler(make_unet(0), scheduler, PROFILE).sample([item(0, 21)]))


def test_a_start_beyond_the_steps_is_refused(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="start_step 5: there are 5 steps"):
        list(sampler.sample([item(0, 5, clean=picture(0), start_step=5)]))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1_001}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"sede": 3}, "sede"),
        ({"scheduler": "fast"}, "scheduler"),
        ({"steps": "many"}, "steps"),
        ({"eta": -0.1}, "eta"),
        ({"eta": 1.1}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"width": 0}, "width"),
        ({"width": 16_385}, "width"),
    ],
)
def test_a_request_that_cannot_be_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(pydantic.ValidationError) as raised:
        GenerateRequest.model_validate(values)
    assert [error["loc"] for error in raised.value.errors()] == [(named,)]


def test_request_defaults_and_limits() -> None:
    expected = {
        "steps": None,
        "scheduler": None,
        "eta": 0.0,
        "guidance_scale": 1.0,
        "guidance_rescale": 0.0,
        "width": None,
        "duration_s": None,
        "bars": None,
        "bpm": None,
        "key": None,
        "loudness": None,
        "brightness": None,
        "seamless": False,
        "id": None,
        "seed": 0,
        "encoding": None,
        "like": None,
        "prompt": None,
        "kind": "generate",
    }
    assert GenerateRequest().model_dump() == expected
    assert GenerateRequest(seed=2**32 - 1, steps=1_000).seed == 2**32 - 1
    request: Any = GenerateRequest()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        request.seed = 3
    resolved = GenerateRequest(seed=4).resolved(Objective().scheduler("ddpm"))
    assert (resolved.seed, resolved.steps, resolved.scheduler) == (4, 8, "dpm++_sde")


@pytest.mark.parametrize(
    ("fields", "method", "steps"),
    [
        ({"kind": "generate"}, "dpm++_sde", 8),
        ({"kind": "vary", "source": "a.wav", "strength": 0.5}, "dpm++_sde", 8),
        ({"kind": "interpolate", "seeds": (0, 1)}, "dpm++_sde", 8),
        ({"kind": "generate", "steps": 50}, "ddim", 50),
        ({"kind": "generate", "scheduler": "ddim"}, "ddim", 15),
        ({"kind": "generate", "scheduler": "dpm++_sde"}, "dpm++_sde", 15),
        ({"kind": "generate", "eta": 0.5}, "ddim", 15),
        ({"kind": "invert", "source": "a.wav"}, "ddim", 15),
        ({"kind": "interpolate", "sources": ("a.wav", "b.wav")}, "ddim", 15),
    ],
)
def test_the_default_method_is_the_cheapest_that_can_do_the_request(
    fields: dict[str, Any], method: str, steps: int
) -> None:
    resolved = REQUEST.validate_python(fields).resolved(Objective().scheduler("ddim"))
    assert (resolved.scheduler, resolved.steps) == (method, steps)


def test_models_without_zero_terminal_snr_keep_the_method_of_diffusers() -> None:
    resolved = GenerateRequest().resolved(DDIMScheduler())
    assert (resolved.scheduler, resolved.steps) == ("ddim", 50)


@pytest.mark.parametrize("sample_size", [16, [16, 16], (16, 16)])
def test_all_forms_of_sample_size(make_unet: Callable[[int], Any], sample_size: Any) -> None:
    unet = make_unet(0)
    unet.register_to_config(sample_size=sample_size)
    assert Sampler(unet, Objective().scheduler("ddim"), PROFILE).shape(16) == (1, 16, 16)


def test_settings_outlast_the_first_of_two_overlapping_blocks() -> None:
    """The process has the settings of the profile until the last block ends, in whichever thread."""
    profile = ExecutionProfile(batch_size=1, threads=3)
    entered, left, checked = (threading.Event() for _ in range(3))

    def of_the_process() -> int:
        """Return the number of a new thread, which is that of the process."""
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    def inner() -> None:
        with profile.applied():
            entered.set()
            left.wait(10)
            seen.append((torch.get_num_threads(), of_the_process()))
        seen.append((torch.get_num_threads(), of_the_process()))
        checked.set()

    seen: list[tuple[int, int]] = []
    torch.set_num_threads(1)
    with profile.applied():
        threading.Thread(target=inner).start()
        assert entered.wait(10)
    left.set()
    assert checked.wait(10)
    assert seen == [(3, 3), (1, 1)]
    torch.set_num_threads(1)


def test_profile_sets_one_thread() -> None:
    torch.set_num_threads(2)
    PROFILE.prepare_process()
    assert torch.get_num_threads() == PROFILE.threads == 1


def test_here_is_fp32_on_a_cpu_and_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ExecutionProfile.here() == ExecutionProfile(batch_size=4, precision="fp32", device="cpu")
    assert ExecutionProfile.here("bf16", 9, compiled=True) == ExecutionProfile(
        batch_size=9, precision="bf16", compiled=True
    )
    with pytest.raises(ValueError, match="precision fp16 is for GPUs"):
        ExecutionProfile.here("fp16")


def test_bf16_is_close_to_fp32_and_leaves_the_network_as_it_was(
    make_unet: Callable[[int], Any], sampler: Sampler
) -> None:
    unet = make_unet(0)
    profile = ExecutionProfile(batch_size=4, precision="bf16")
    wanted = item(0)
    coarse = image_of(Sampler(unet, Objective().scheduler("ddim"), profile), wanted)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    difference = np.abs(coarse.astype(int) - image_of(sampler, wanted)).mean()
    assert 0 < difference < 4


def test_a_network_answers_in_the_order_of_the_queries(sampler: Sampler, make_unet: Callable[[int], Any]) -> None:
    samples = torch.stack([picture(seed) for seed in range(4)])
    with torch.inference_mode():
        answers = Network(make_unet(0), PROFILE)(samples, 100.0 * torch.arange(4))
        for place, answer in enumerate(answers):
            expected = make_unet(0)(samples[place : place + 1], 100 * place, return_dict=False)[0]
            torch.testing.assert_close(answer[None], expected, atol=1e-5, rtol=0)
    assert replace(item(0), width=32).pool == (32, False)


def test_steps_warn_only_through_the_schedule(sampler: Sampler) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        list(sampler.sample([item(0, 5), item(0, 10, "euler")]))


def test_a_sample_that_is_not_finite_is_an_error(make_unet: Callable[[int], Any]) -> None:
    unet = make_unet(0)
    with torch.no_grad():
        unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="seed 3: the network's sample is not finite"):
        list(Sampler(unet, Objective().scheduler("ddim"), PROFILE).sample([item(3)]))


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 8)])
def test_an_encoding_of_another_shape_is_refused(
    conditional_unet: Any, sampler: Sampler, shape: tuple[int, ...]
) -> None:
    conditional = Sampler(conditional_unet, EPSILON.scheduler("ddim"), PROFILE)
    prefix = re.escape(f"encoding of shape {shape} for seed 0: the network ")
    for one, taken in ((conditional, re.escape("takes (8,)")), (sampler, "is not conditional, omit the encoding")):
        with pytest.raises(ValueError, match=prefix + taken):
            list(one.sample([item(0, encoding=torch.zeros(shape))]))
        with pytest.raises(ValueError, match=prefix + taken):
            list(one.invert([item(0, clean=picture(0), encoding=torch.zeros(shape))]))


class Doubling(torch.nn.Module):
    """A module with the signature of a network, which doubles its input."""

    config = SimpleNamespace(in_channels=1, out_channels=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (2 * sample,)


def test_a_compiled_network_takes_many_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    network = Network(Doubling(), ExecutionProfile(batch_size=1, compiled=True))
    torch._dynamo.utils.counters.clear()
    for width in range(8, 8 * 15, 8):
        network(torch.zeros(1, 1, 16, width), torch.ones(1))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 14
