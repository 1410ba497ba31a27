"""A request's image is its own: the same bits in any company, and the image that diffusers' pipeline makes of the same noise."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic
import pytest
import torch
from diffusers import AudioDiffusionPipeline
from diffusers import Mel as OracleMel

from audiodiff_core.mel import MelConfig
from audiodiff_core.objectives import Objective, SchedulerName
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Sampler, scheduler_for
from audiodiff_core.seeds import derived, initial_noise

Bytes = npt.NDArray[np.uint8]
PROFILE = ExecutionProfile(batch_size=4)
EPSILON = Objective(prediction_type="epsilon", zero_terminal_snr=False)


@pytest.fixture(scope="module")
def sampler(make_unet: Callable[[int], Any]) -> Sampler:
    return Sampler(make_unet(0), Objective().scheduler("ddim"), PROFILE)


def ddim(seed: int, steps: int = 5) -> GenerateRequest:
    return GenerateRequest(seed=seed, steps=steps)


def ddpm(seed: int, steps: int = 5) -> GenerateRequest:
    return GenerateRequest(seed=seed, steps=steps, scheduler="ddpm")


def image_of(sampler: Sampler, request: GenerateRequest, company: list[GenerateRequest]) -> Bytes:
    return dict(sampler.sample(company))[request]


@pytest.mark.parametrize("request_", [ddim(3), ddpm(3)], ids=["ddim", "ddpm"])
def test_an_image_does_not_depend_on_its_company(sampler: Sampler, request_: GenerateRequest) -> None:
    alone = image_of(sampler, request_, [request_])
    assert alone.std() > 10
    companies = {
        "full batch": [request_, ddim(10), ddim(11), ddim(12)],
        "last place": [ddim(10), ddim(11), ddim(12), request_],
        "other steps": [ddim(10, 2), ddim(11, 9), request_, ddim(12, 3)],
        "other schedulers": [ddpm(10, 9), request_, ddpm(11, 2), ddim(12, 4)],
        "takes a freed place": [ddim(10, 3), ddpm(11, 4), ddim(12, 8), ddim(13, 9), request_, ddpm(14, 2)],
    }
    for name, company in companies.items():
        np.testing.assert_array_equal(image_of(sampler, request_, company), alone, err_msg=name)


@pytest.mark.parametrize("count", range(1, 8))
def test_an_image_does_not_depend_on_how_many_are_asked_for(sampler: Sampler, count: int) -> None:
    requests = [ddim(seed, 3) for seed in range(count)]
    made = list(sampler.sample(requests))
    assert sorted(request.seed for request, _ in made) == list(range(count))
    for request, image in made:
        np.testing.assert_array_equal(image_of(sampler, request, [request]), image)


def test_every_part_of_a_request_matters(sampler: Sampler) -> None:
    images = {image.tobytes() for _, image in sampler.sample([ddim(0), ddim(1), ddim(0, 8), ddpm(0)])}
    assert len(images) == 4


def test_short_requests_leave_first_and_requests_are_taken_only_as_places_come_free(sampler: Sampler) -> None:
    taken: list[int] = []

    def endless() -> Any:
        for seed in range(100):
            taken.append(seed)
            yield ddim(seed, 2 if seed == 1 else 8)

    made = sampler.sample(endless())
    assert next(made)[0].seed == 1
    assert len(taken) == 4


def test_no_request_no_image(sampler: Sampler) -> None:
    assert list(sampler.sample([])) == []


@pytest.mark.parametrize("objective", [EPSILON, Objective()], ids=["epsilon-leading", "v-trailing"])
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_images_are_those_of_diffusers_pipeline(
    make_unet: Callable[[int], Any], tiny_mel: MelConfig, name: SchedulerName, objective: Objective
) -> None:
    reference = AudioDiffusionPipeline(
        vqvae=None, unet=make_unet(1).eval(), mel=OracleMel(**tiny_mel.model_dump()), scheduler=objective.scheduler(name)
    )
    reference.set_progress_bar_config(disable=True)
    requests = [GenerateRequest(seed=seed, steps=steps, scheduler=name) for seed, steps in [(0, 10), (2**32 - 1, 4)]]
    for request, image in Sampler(make_unet(1), objective.scheduler("ddpm"), PROFILE).sample(requests):
        (expected,), _ = reference(
            steps=request.steps, generator=initial_noise(request.seed), step_generator=derived(request.seed, "step"), return_dict=False
        )
        assert image.std() > 10
        assert np.abs(np.asarray(expected).astype(int) - image).max() <= 1


def test_initial_noise_is_that_of_a_seeded_torch_generator() -> None:
    expected = torch.randn(5, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.randn(5, generator=initial_noise(7)), expected)
    others = [torch.randn(5, generator=derived(seed, purpose)) for seed in (7, 8) for purpose in ("step", "phase")]
    assert len({tuple(noise.tolist()) for noise in [expected, *others]}) == 5


def test_more_steps_than_levels_are_refused(make_unet: Callable[[int], Any]) -> None:
    scheduler = Objective(num_train_timesteps=20).scheduler("ddim")
    with pytest.raises(ValueError, match="steps 21: the model has 20 levels"):
        list(Sampler(make_unet(0), scheduler, PROFILE).sample([ddim(0, 21)]))


def test_a_step_count_that_leaves_noise_warns(sampler: Sampler) -> None:
    for request in (ddim(0, 600), ddim(0, 7), ddpm(0, 600)):
        with pytest.warns(UserWarning, match=f"steps {request.steps} with {request.scheduler}: a little noise is left"):
            scheduler_for(sampler.scheduler, request)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (1, 10, 50, 100, 500, 1_000):
            scheduler_for(sampler.scheduler, ddim(0, steps))


def test_schedulers_are_not_shared(sampler: Sampler) -> None:
    one, other = (scheduler_for(sampler.scheduler, ddim(0, 5)) for _ in range(2))
    assert one is not other
    assert one is not sampler.scheduler


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1_001}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"sede": 3}, "sede"),
        ({"scheduler": "euler"}, "scheduler"),
        ({"steps": "many"}, "steps"),
    ],
)
def test_a_request_that_cannot_be_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(pydantic.ValidationError) as raised:
        GenerateRequest.model_validate(values)
    assert [error["loc"] for error in raised.value.errors()] == [(named,)]


def test_request_defaults_and_limits() -> None:
    assert GenerateRequest().model_dump() == {"steps": 50, "scheduler": "ddim", "seed": 0}
    assert GenerateRequest(seed=2**32 - 1, steps=1_000).seed == 2**32 - 1
    request: Any = GenerateRequest()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        request.seed = 3


@pytest.mark.parametrize("sample_size", [16, [16, 16], (16, 16)])
def test_all_forms_of_sample_size(make_unet: Callable[[int], Any], sample_size: Any) -> None:
    unet = make_unet(0)
    unet.register_to_config(sample_size=sample_size)
    ((_, image),) = Sampler(unet, Objective().scheduler("ddim"), PROFILE).sample([ddim(0, 1)])
    assert image.shape == (16, 16)


def test_profile_sets_one_thread() -> None:
    torch.set_num_threads(2)
    PROFILE.prepare_process()
    assert torch.get_num_threads() == PROFILE.threads == 1


def test_bf16_is_close_to_fp32(make_unet: Callable[[int], Any], sampler: Sampler) -> None:
    profile = ExecutionProfile(batch_size=4, precision="bf16")
    (coarse,) = dict(Sampler(make_unet(0), Objective().scheduler("ddim"), profile).sample([ddim(0)])).values()
    assert np.abs(coarse.astype(int) - image_of(sampler, ddim(0), [ddim(0)])).mean() < 4
