"""Requests that state features, and models that are conditioned on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from accelerate import Accelerator

from audiodiff_core.checkpoint import Model, ModelRecord, load_model, load_outline, save_model
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.embeddings.measured import MeasuredConditions
from audiodiff_core.loops import loop_length
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, build_network
from audiodiff_core.pipeline import LoopPipeline, RequestCheck
from audiodiff_core.sampling import REQUEST, ExecutionProfile, GenerateRequest
from audiodiff_core.training import TrainBatch, TrainState, draws
from audiodiff_core.training.step import on_device
from tests.random_models import CONDITIONAL

MEL = MelConfig(x_res=16, y_res=16, n_fft=512, hop_length=256)
CONDITIONS = MeasuredConditions.of(["tempo", "key"])
PROFILE = ExecutionProfile(batch_size=4)
SCHEDULER = PRESETS[CONDITIONAL].objective.scheduler("ddim")


def model_of(conditions: MeasuredConditions | None, dim: int | None = None) -> Model:
    torch.manual_seed(0)
    dim = dim or (conditions.dim if conditions else 4)
    record = ModelRecord(recipe={}, data_digest="", metrics={}, conditions=conditions)
    return Model(build_network(CONDITIONAL, MEL, encoding_dim=dim), SCHEDULER, MEL, "", record=record)


@pytest.fixture(scope="module")
def pipeline() -> LoopPipeline:
    return LoopPipeline.of(model_of(CONDITIONS), PROFILE)


def images(pipeline: LoopPipeline, requests: list[GenerateRequest], **more: Any) -> list[bytes]:
    loops = sorted(pipeline.generate(requests, **more), key=lambda loop: loop.number)
    return [loop.image.tobytes() for loop in loops]


def test_features_condition_the_loop_alone_and_in_company(pipeline: LoopPipeline) -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"bpm": 90.0},
        {"bpm": 91.0},
        {"key": "Am"},
        {"bpm": 90.0, "key": "A minor"},
        {"bpm": 90.0, "guidance_scale": 3.0},
    ]
    requests = [GenerateRequest(seed=1, steps=2, **row) for row in rows]
    made = images(pipeline, requests)
    assert len(set(made)) == len(rows)
    assert [image for request in requests for image in images(pipeline, [request])] == made
    vector = CONDITIONS.encoding({"tempo": 90.0})
    assert images(pipeline, [GenerateRequest(seed=1, steps=2)], encodings=vector[np.newaxis]) == [made[1]]
    (loop,) = pipeline.generate([requests[4]])
    assert (loop.request.bpm, loop.request.key) == (90.0, "A minor")


def test_bars_and_bpm_fix_the_length_and_condition_the_loop(pipeline: LoopPipeline) -> None:
    request = GenerateRequest(seed=1, steps=2, bars=1, bpm=200.0)
    (loop,) = pipeline.generate([request])
    assert len(loop.audio) == loop_length(1, 200.0, MEL.sample_rate)
    plain = LoopPipeline.of(model_of(None, CONDITIONS.dim), PROFILE)
    (other,) = plain.generate([request])
    assert len(other.audio) == len(loop.audio)
    assert not np.array_equal(other.image, loop.image)
    (free,) = pipeline.generate([GenerateRequest(seed=1, steps=2, bpm=200.0)])
    assert free.image.shape == (16, 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loudness": -14.0}, "^loudness -14: the model is not conditioned on loudness, only on tempo, key: omit it$"),
        ({"bpm": 300.0}, "^bpm 300: .* a tempo of 40 to 240 bpm: use a value of this range, or omit bpm$"),
        ({"prompt": "choir"}, "^prompt choir: the model has no encoder, it is conditioned on tempo, key: omit it$"),
        ({"like": "a.wav"}, r"^like a\.wav: the model has no encoder, it is conditioned on tempo, key: omit it$"),
    ],
)
def test_what_the_model_does_not_know_is_an_error_of_the_call(
    pipeline: LoopPipeline, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.generate([GenerateRequest(), GenerateRequest(**values)])


@pytest.mark.parametrize(
    ("conditions", "values", "message"),
    [
        (["key"], {"bpm": 90.0}, "^bpm 90 without bars: the model is not conditioned on tempo, only on key: set bars"),
        (None, {"bpm": 90.0}, "^bpm 90 without bars: .* not conditioned on tempo, and has no measured conditions: set"),
        (None, {"key": "C"}, "^key C major: the model is not conditioned on key, and has no measured conditions: omit"),
    ],
)
def test_models_without_the_condition_refuse_it(
    conditions: list[str] | None, values: dict[str, Any], message: str
) -> None:
    made = MeasuredConditions.of(conditions) if conditions else None
    pipeline = LoopPipeline.of(model_of(made), PROFILE)
    with pytest.raises(ValueError, match=message):
        pipeline.generate([GenerateRequest(**values)])
    bars = {"steps": 1, "bars": 1, "bpm": 200.0}
    assert len(list(pipeline.generate([GenerateRequest(**bars)]))) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"key": "H"}, "key H: use a tonic and a mode"),
        ({"key": 7}, "string"),
        ({"key": "x" * 20}, "at most 16"),
        ({"brightness": float("inf")}, "finite"),
        ({"key": "C", "prompt": "choir"}, "key with prompt: both state the encoding, set only one of them"),
        ({"bpm": 90.0, "encoding": [1.0]}, "bpm with encoding: both state the encoding, set only one of them"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(values: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        REQUEST.validate_python(values)


def test_bars_with_bpm_are_a_length_beside_an_encoding(pipeline: LoopPipeline) -> None:
    request = GenerateRequest(steps=2, bars=1, bpm=200.0, encoding=(0.5,) * CONDITIONS.dim)
    (loop,) = pipeline.generate([request])
    without = GenerateRequest(steps=2, width=loop.request.width, encoding=(0.5,) * CONDITIONS.dim)
    assert images(pipeline, [without]) == [loop.image.tobytes()]


@pytest.mark.parametrize("stated", [{"bpm": 90.0}, {"key": "C"}, {"prompt": "choir"}, {"encoding": (0.5,) * 46}])
def test_arrays_of_encodings_take_the_place_of_no_stated_one(pipeline: LoopPipeline, stated: dict[str, Any]) -> None:
    vectors = np.zeros((2, CONDITIONS.dim), np.float32)
    requests = [GenerateRequest(steps=2), GenerateRequest(steps=2, **stated)]
    with pytest.raises(ValueError, match=rf"^{next(iter(stated))} with encodings: both state the encoding, set only"):
        pipeline.generate(requests, encodings=vectors)
    bars = GenerateRequest(steps=2, bars=1, bpm=200.0)
    (loop,) = pipeline.generate([bars], encodings=vectors[:1])
    assert len(loop.audio) == loop_length(1, 200.0, MEL.sample_rate)


def test_an_encoder_of_a_model_without_one_is_refused() -> None:
    words = "^encoder nonsense: the model has no encoder, it is conditioned on tempo, key: omit it$"
    with pytest.raises(ValueError, match=words):
        LoopPipeline.of(model_of(CONDITIONS), PROFILE, "nonsense")


@pytest.mark.parametrize("more", [{}, {"key": "Am"}, {"encoding": (0.5,) * CONDITIONS.dim}])
def test_bars_fix_the_length_at_a_tempo_that_the_model_does_not_know(
    pipeline: LoopPipeline, more: dict[str, Any]
) -> None:
    (loop,) = pipeline.generate([GenerateRequest(steps=2, bars=1, bpm=300.0, **more)])
    assert len(loop.audio) == loop_length(1, 300.0, MEL.sample_rate)
    assert images(pipeline, [GenerateRequest(steps=2, width=loop.request.width, **more)]) == [loop.image.tobytes()]


def test_the_checkpoint_alone_knows_the_conditions(pipeline: LoopPipeline, tmp_path: Path) -> None:
    plain, own = model_of(None, CONDITIONS.dim), model_of(CONDITIONS)
    for name, model in (("own", own), ("plain", plain)):
        assert model.record is not None
        save_model(tmp_path / name, model.unet, model.scheduler, model.mel, model.record)
    loaded, outline = load_model(tmp_path / "own"), load_outline(tmp_path / "own")
    assert loaded.record is not None
    assert loaded.record.conditions == CONDITIONS
    assert "conditions" not in (tmp_path / "plain" / "audiodiff.json").read_text()
    assert "| conditioned by | tempo, key |" in (tmp_path / "own" / "README.md").read_text()
    assert loaded.digest != load_model(tmp_path / "plain").digest
    request = GenerateRequest(seed=1, steps=2, bpm=90.0)
    assert images(LoopPipeline.of(loaded, PROFILE), [request]) == images(pipeline, [request])
    assert RequestCheck(outline).resolved(GenerateRequest(key="gb")).key == "F# major"
    with pytest.raises(ValueError, match=r"^brightness 100: the model is not conditioned on brightness"):
        RequestCheck(outline).resolved(GenerateRequest(brightness=100.0))


def test_conditions_must_fit_the_network() -> None:
    with pytest.raises(ValueError, match=r"^conditions of 46 values do not fit the network, which takes 4: "):
        LoopPipeline.of(model_of(CONDITIONS, 4), PROFILE)


def test_parts_are_dropped_by_seed_and_number() -> None:
    numbers, sizes = torch.arange(4_000), (3, 2, 4)
    objective = Objective(conditioning_dropout=0.25)

    def kept(numbers: torch.Tensor, seed: int = 0) -> torch.Tensor:
        drawn = draws(seed, numbers, objective, (1, 2, 2), parts=sizes, device="cpu").kept_values
        assert drawn is not None
        return drawn

    drawn = kept(numbers)
    assert drawn.shape == (4_000, 9)
    assert torch.equal(kept(numbers[7:9]), drawn[7:9])
    assert not torch.equal(kept(numbers, seed=1), drawn)
    parts = torch.stack([part[:, 0] for part in drawn.split(sizes, dim=1)], dim=1)
    assert torch.equal(parts.repeat_interleave(torch.tensor(sizes), dim=1), drawn)
    counts = torch.bincount(parts.sum(dim=1), minlength=4) / len(numbers)
    assert counts[0] == 0
    assert counts[1:].tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert parts.float().mean(dim=0).tolist() == pytest.approx([2 / 3] * 3, abs=0.03)
    plain = draws(0, numbers, objective, (1, 2, 2), device="cpu")
    with_parts = draws(0, numbers, objective, (1, 2, 2), parts=sizes, device="cpu")
    assert plain.kept_values is None
    assert torch.equal(plain.kept, with_parts.kept)
    assert torch.equal(plain.timesteps, with_parts.timesteps)
    assert kept(torch.arange(50), seed=3)[:, :1].any()
    one = draws(0, numbers[:50], objective, (1, 2, 2), parts=(3,), device="cpu").kept_values
    assert one is not None
    assert one.all()


def test_training_sees_encodings_without_the_dropped_parts() -> None:
    accelerator = Accelerator(cpu=True)
    network = model_of(CONDITIONS).unet
    objective = PRESETS[CONDITIONAL].objective
    state = TrainState(accelerator, network, objective, 1e-3, seed=0, encoding_parts=CONDITIONS.sizes)
    vector = torch.from_numpy(CONDITIONS.encoding({"tempo": 90.0, "key": "C"}))
    numbers = torch.arange(64)
    batch = TrainBatch(numbers, torch.zeros(64, 16, 16, dtype=torch.uint8), vector.expand(64, -1))
    _, drawn, encodings = on_device(accelerator, state, batch)
    assert drawn.kept_values is not None
    assert encodings is not None
    assert torch.equal(encodings, vector * (drawn.kept.unsqueeze(1) & drawn.kept_values))
    tempo, key = (part.any(dim=1) for part in encodings.split(CONDITIONS.sizes, dim=1))
    assert {*zip(tempo.tolist(), key.tolist(), strict=True)} == {(a, b) for a in (True, False) for b in (True, False)}
    _, _, whole = on_device(accelerator, state, batch, dropout=False)
    assert whole is not None
    assert torch.equal(whole, vector.expand(64, -1))
