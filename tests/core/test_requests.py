"""Requests of every kind: their validation, and the loops that a pipeline generates from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic
import pytest
import torch

from audiodiff_core.audio import decode_audio
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.loops import loop_length
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import Audio, Failure, Loop, LoopPipeline, Step, load_pipeline, slerp
from audiodiff_core.sampling import REQUEST, ExecutionProfile, GenerateRequest, Request

PROFILE = ExecutionProfile(batch_size=4)
SCHEDULER = Objective().scheduler("ddim")
SOURCE = {"source": "take", "steps": 4}
KINDS: dict[str, dict[str, Any]] = {
    "generate": {"steps": 4},
    "vary": {**SOURCE, "strength": 0.5},
    "inpaint": {**SOURCE, "regenerate": [[0.0, 0.08]]},
    "extend": {**SOURCE, "duration_s": 0.5},
    "remix": {**SOURCE, "strength": 0.75},
    "invert": {**SOURCE, "refinements": 2},
    "interpolate": {"steps": 4, "seeds": [1, 2, 3], "position": 0.25},
}


@pytest.fixture(scope="module")
def pipeline(make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> LoopPipeline:
    return LoopPipeline(make_unet(0), SCHEDULER, tiny_mel, PROFILE)


@pytest.fixture(scope="module")
def conditional(make_conditional: Callable[[int], Any], tiny_mel: MelConfig) -> LoopPipeline:
    return LoopPipeline(make_conditional(0), SCHEDULER, tiny_mel, PROFILE)


@pytest.fixture(scope="module")
def take(loop_files: list[Path]) -> Audio:
    samples = decode_audio(str(loop_files[0]), 22_050, longest_s=100)
    return Audio(samples[20_000:29_000], 22_050)


def request(kind: str, seed: int = 0, **more: Any) -> Request:
    return REQUEST.validate_python({"kind": kind, "seed": seed, **KINDS[kind], **more})


def equal(one: Loop, other: Loop) -> bool:
    return np.array_equal(one.image, other.image) and np.array_equal(one.audio, other.audio)


@pytest.fixture(scope="module")
def company(pipeline: LoopPipeline, take: Audio) -> dict[int, Loop]:
    """Return the loops of two requests of each kind that share batches, by number."""
    requests = [request(kind, seed) for seed in (3, 4) for kind in KINDS]
    loops = {loop.number: loop for loop in pipeline.generate(requests, sources={"take": take})}
    assert sorted(loops) == list(range(len(requests)))
    return loops


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_alone_is_the_same_as_in_company(
    pipeline: LoopPipeline, take: Audio, company: dict[int, Loop], kind: str
) -> None:
    (alone,) = pipeline.generate([request(kind, 3)], sources={"take": take})
    assert equal(company[list(KINDS).index(kind)], alone)
    assert alone.request.kind == kind  # type: ignore[attr-defined]
    assert np.isfinite(alone.audio).all()


def test_requests_are_what_the_calls_with_arrays_make(pipeline: LoopPipeline, take: Audio) -> None:
    plain = [GenerateRequest(seed=3, steps=4)]
    sources = {"take": take}

    def made(kind: str, **more: Any) -> Loop:
        (loop,) = pipeline.generate([request(kind, 3, **more)], sources=sources)
        return loop

    (varied,) = pipeline.vary(plain, [take], strength=0.5)
    assert equal(made("vary"), varied)
    (inpainted,) = pipeline.inpaint(plain, [take], [[(0.0, 0.08)]])
    assert equal(made("inpaint"), inpainted)
    (extended,) = pipeline.extend(plain, 0.5, [take])
    assert equal(made("extend"), extended)
    (remixed,) = pipeline.remix(plain, [take], 0.75)
    assert equal(made("remix"), remixed)
    noise = pipeline.invert(plain, [take], refinements=2)
    (reproduced,) = pipeline.generate(plain, noises=noise)
    inverted = made("invert")
    assert equal(inverted, reproduced)
    assert inverted.noise is not None
    assert np.array_equal(inverted.noise, noise[0])
    keys = pipeline.noise([GenerateRequest(seed=seed) for seed in (1, 2)])
    (between,) = pipeline.generate(plain, noises=slerp(keys[:1], keys[1:], 0.5))
    assert equal(made("interpolate"), between)  # a quarter of the way through three seeds


def test_interpolation_between_sources_passes_through_them(pipeline: LoopPipeline, take: Audio) -> None:
    sources = {"take": take, "late": Audio(take.samples, take.sample_rate, slice=1)}
    between: dict[str, Any] = {"steps": 4, "seeds": None, "sources": ["take", "late"]}
    first, last = (request("interpolate", **between, position=position) for position in (0.0, 1.0))
    inverted = [
        REQUEST.validate_python({"kind": "invert", "source": name, "steps": 4, "refinements": 3}) for name in sources
    ]
    loops = {loop.number: loop for loop in pipeline.generate([first, last, *inverted], sources=sources)}
    assert equal(loops[0], loops[2])
    assert equal(loops[1], loops[3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_width_is_an_error_of_the_call(pipeline: LoopPipeline, take: Audio, kind: str) -> None:
    good = [request("generate", seed) for seed in range(5)]
    with pytest.raises(ValueError, match="width 17: the network takes multiples of 2"):
        pipeline.generate([*good, request(kind, width=17)], sources={"take": take})
    assert len(list(pipeline.generate(good))) == 5


def test_what_an_iterator_holds_fails_alone(pipeline: LoopPipeline, take: Audio) -> None:
    rows = [request("generate", seed) for seed in range(5)]
    rows.insert(2, request("generate", 9, width=17))
    rows.insert(4, request("vary", 10, source="nowhere.wav"))
    made: list[int] = []
    with pytest.raises(ValueError, match=r"width 17.*; .*nowhere\.wav"):
        made.extend(loop.request.seed for loop in pipeline.generate(iter(rows), sources={"take": take}))
    assert sorted(made) == [0, 1, 2, 3, 4]
    outcomes = list(pipeline.outcomes(iter(rows)))
    assert {outcome.request.seed for outcome in outcomes if isinstance(outcome, Failure)} == {9, 10}


def test_a_source_that_cannot_be_read_fails_alone(pipeline: LoopPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "folder.wav"
    folder.mkdir()
    rows = [request("generate", 1), request("vary", 2, source=str(folder)), request("generate", 3)]
    outcomes = {outcome.request.seed: outcome for outcome in pipeline.outcomes(rows)}
    assert [seed for seed, outcome in outcomes.items() if isinstance(outcome, Loop)] == [1, 3]
    failure = outcomes[2]
    assert isinstance(failure, Failure)
    with pytest.raises(type(failure.error), match=r"folder\.wav"):
        list(pipeline.generate(rows))


def test_an_image_as_track_has_the_height_of_the_model(pipeline: LoopPipeline) -> None:
    row = request("remix", source="picture")
    image = np.zeros((16, 40), np.uint8)
    (loop,) = pipeline.generate([row], sources={"picture": image})
    assert loop.image.shape == image.shape
    with pytest.raises(ValueError, match=r"image of shape \(8, 40\) and type uint8: pass uint8 \(16, columns\)"):
        list(pipeline.generate([row], sources={"picture": image[:8]}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "fade"}, "fade"),
        ({"kind": "vary"}, "source"),
        ({"kind": "vary", "source": ""}, "source"),
        ({"kind": "vary", "source": "x" * 5_000}, "source"),
        ({"kind": "generate", "source": "a.wav"}, "source"),
        ({"kind": "vary", "source": "a.wav", "strength": 0.5, "start_step": 2}, "set only one of them"),
        ({"kind": "vary", "source": "a.wav", "strength": 0}, "strength"),
        ({"kind": "inpaint", "source": "a.wav", "regenerate": []}, "regenerate"),
        ({"kind": "inpaint", "source": "a.wav", "regenerate": [[0, float("nan")]]}, "regenerate"),
        ({"kind": "extend"}, "set duration_s, or bars and bpm"),
        ({"kind": "extend", "duration_s": 2, "seamless": True}, "no end to continue from"),
        ({"kind": "remix", "source": "a.wav", "duration_s": 2}, "as long as its track"),
        ({"kind": "inpaint", "source": "a.wav", "regenerate": [[0, 1]], "bars": 1, "bpm": 120}, "omit bars and bpm"),
        ({"kind": "interpolate"}, "seeds or sources"),
        ({"kind": "interpolate", "seeds": [1, 2], "sources": ["a", "b"]}, "seeds or sources"),
        ({"kind": "interpolate", "seeds": [1]}, "seeds"),
        ({"kind": "interpolate", "seeds": [1, 2], "position": 2}, "position"),
        ({"bars": 2}, "bars 2 without bpm: set bpm too, or omit bars"),
        ({"bars": 2, "bpm": 5}, "bpm"),
        ({"duration_s": 2, "width": 32}, "duration_s 2 with width: both state the length"),
        ({"duration_s": 2, "bars": 2, "bpm": 120}, "duration_s 2 with bars: both state the length"),
        ({"encoding": []}, "encoding"),
        ({"encoding": [float("inf")]}, "encoding"),
        ({"guidance_rescale": 1.5}, "guidance_rescale"),
        ({"id": ""}, "id"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(values: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        REQUEST.validate_python(values)


def test_requests_survive_json_and_are_hashable(pipeline: LoopPipeline) -> None:
    for kind in KINDS:
        made = request(kind, 5, id="take 5")
        assert REQUEST.validate_json(REQUEST.dump_json(made)) == made
        assert hash(made) == hash(request(kind, 5, id="take 5"))
        resolved = pipeline.resolved(made)
        assert pipeline.resolved(resolved) == resolved
        assert REQUEST.validate_python(resolved.model_dump()) == resolved
    assert REQUEST.validate_python({}) == GenerateRequest()


@pytest.mark.parametrize("seamless", [False, True])
def test_bars_fix_the_length_to_the_sample(pipeline: LoopPipeline, seamless: bool) -> None:
    # A beat of 0.2 s: the loops of this model last from 0.2 s to 1.5 s.
    bars = GenerateRequest(steps=2, bars=1, bpm=300.0, seamless=seamless)
    (loop,) = pipeline.generate([bars])
    assert len(loop.audio) == loop_length(1, 300.0, 22_050)
    assert len(loop.audio) <= loop.image.shape[1] * 256
    (longer,) = pipeline.generate([GenerateRequest(steps=2, duration_s=0.7, seamless=seamless)])
    assert longer.request.width == longer.image.shape[1] == 62
    assert longer.request.duration_s is None


def test_encodings_in_requests(conditional: LoopPipeline) -> None:
    vector = np.random.default_rng(7).standard_normal(8).astype(np.float32)
    values = tuple(float(value) for value in vector)
    zero = GenerateRequest(steps=3, encoding=(0.0,) * 8)
    none, by_value, by_name = (GenerateRequest(steps=3, encoding=encoding) for encoding in (None, values, "kick"))
    loops = {
        loop.number: loop for loop in conditional.generate([none, zero, by_value, by_name], encodings={"kick": vector})
    }
    (by_array,) = conditional.generate([none], encodings=vector[None])
    assert equal(loops[0], loops[1])
    assert equal(loops[2], loops[3])
    assert equal(loops[2], by_array)
    assert not equal(loops[0], loops[2])
    with pytest.raises(ValueError, match="encoding snare: not among the 1 encodings of the call"):
        conditional.generate([GenerateRequest(encoding="snare")], encodings={"kick": vector})
    with pytest.raises(ValueError, match=r"encoding of shape \(3,\): the model takes 8 finite numbers"):
        conditional.generate([GenerateRequest(encoding=(1.0, 2.0, 3.0))])


def test_rescaled_guidance_changes_the_loop(conditional: LoopPipeline) -> None:
    guided = {"steps": 3, "encoding": (1.0,) * 8, "guidance_scale": 6.0}
    plain, rescaled = conditional([GenerateRequest(**guided), GenerateRequest(**guided, guidance_rescale=0.7)])
    assert not equal(plain, rescaled)


def test_short_requests_are_delivered_before_long_ones(pipeline: LoopPipeline) -> None:
    rows = [GenerateRequest(seed=1, steps=200), GenerateRequest(seed=2, steps=2)]
    steps_of_the_long_one: list[int] = []

    def watch(step: Step) -> None:
        if step.number == 0:
            steps_of_the_long_one.append(step.step)

    first = next(pipeline.generate(rows, on_step=watch))
    assert first.request.seed == 2
    assert steps_of_the_long_one[-1] == 2


def test_each_step_is_reported_with_a_preview(pipeline: LoopPipeline) -> None:
    seen: list[tuple[int, int, int]] = []
    previews: list[npt.NDArray[np.uint8]] = []

    def watch(step: Step) -> None:
        seen.append((step.number, step.step, step.steps))
        previews.append(step.preview())

    (loop,) = pipeline.generate([GenerateRequest(steps=5)], on_step=watch)
    assert seen == [(0, step, 5) for step in range(1, 6)]
    assert np.array_equal(previews[-1], loop.image)
    assert all(preview.shape == loop.image.shape for preview in previews)


def test_a_pipeline_is_called_saved_loaded_and_moved(
    make_unet: Callable[[int], Any], tiny_mel: MelConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline = LoopPipeline(make_unet(0), SCHEDULER, tiny_mel, PROFILE)
    loops = pipeline(count=3, seed=7, steps=2)
    assert [(loop.number, loop.request.seed) for loop in loops] == [(0, 7), (1, 8), (2, 9)]
    assert "3/3" in capfd.readouterr().err
    pipeline.save_pretrained(tmp_path / "model")
    loaded = LoopPipeline.from_pretrained(tmp_path / "model", PROFILE)
    assert all(equal(one, other) for one, other in zip(loaded(count=3, seed=7, steps=2), loops, strict=True))
    assert load_pipeline(tmp_path / "model").profile == ExecutionProfile.here()
    eight = LoopPipeline(make_unet(0), SCHEDULER, tiny_mel, ExecutionProfile(batch_size=8)).to("cpu")
    assert eight.profile == ExecutionProfile(batch_size=8)
    assert equal(pipeline.to("cpu")(seed=7, steps=2)[0], loops[0])
    with pytest.raises(ValueError, match="steps: set them in the requests"):
        pipeline([GenerateRequest()], steps=2)


def test_interactive_use_pads_as_little_as_possible(make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> None:
    pipeline = LoopPipeline(make_unet(0), SCHEDULER, tiny_mel, "interactive")
    for count, size in [(1, 1), (2, 4), (4, 4), (5, 8)]:
        loops = pipeline(count=count, steps=2)
        assert {loop.profile.batch_size for loop in loops} == {size}
    same = LoopPipeline(make_unet(0), SCHEDULER, tiny_mel, loops[0].profile)
    assert equal(same(count=1, steps=2)[0], loops[0])
    (unlimited,) = pipeline.generate(iter([GenerateRequest(steps=2)]))
    assert unlimited.profile.batch_size == 32
    (moved,) = pipeline.to("cpu")(steps=2)
    assert moved.profile.batch_size == 1


def test_a_profile_applies_itself(make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> None:
    threads: list[int] = []
    unet = make_unet(0)
    unet.register_forward_pre_hook(lambda *_: threads.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        LoopPipeline(unet, SCHEDULER, tiny_mel, PROFILE)(steps=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "gpu"}, "device gpu is not a torch device: use cpu, cuda, cuda:1 or mps"),
        ({"precision": "tf32"}, "precision tf32 is for GPUs"),
        ({"threads": 0}, "threads"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        ExecutionProfile(batch_size=1, **values)


def test_devices_are_torch_devices() -> None:
    profile = ExecutionProfile(batch_size=1, device="cuda:1", precision="tf32")
    assert (profile.kind, profile.on_gpu, profile.dtype) == ("cuda", True, torch.float32)
    assert profile.record()["device"] == "cuda"
    assert ExecutionProfile(batch_size=1, device="mps").kind == "mps"


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": True},
        {"steps": True},
        {"eta": False},
        {"encoding": [0.5, True]},
        {"kind": "interpolate", "seeds": [0, True]},
    ],
)
def test_true_and_false_are_no_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="holds true or false: use numbers"):
        REQUEST.validate_python(wrong)
    assert REQUEST.validate_python({"seamless": True}).seamless
    assert REQUEST.validate_python({"seamless": "true"}).seamless
    with pytest.raises(ValueError, match="1 is a number: use true or false"):
        REQUEST.validate_python({"seamless": 1})
