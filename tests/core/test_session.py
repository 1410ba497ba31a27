"""Sampling that the caller drives: requests join and leave between steps, and their loops do not show it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import Failure, Loop, LoopPipeline, Session
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Request
from audiodiff_core.sampling.requests import ExtendRequest, InterpolateRequest, VaryRequest


@pytest.fixture
def pipeline(make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> LoopPipeline:
    objective = Objective(prediction_type="epsilon", zero_terminal_snr=False)
    return LoopPipeline(make_unet(0), objective.scheduler(), tiny_mel, ExecutionProfile(batch_size=4))


def drained(session: Session) -> dict[int, Loop | Failure]:
    outcomes: dict[int, Loop | Failure] = {}
    while True:
        ready, failures = session.results()
        outcomes |= {outcome.number: outcome for outcome in (*session.render(ready), *failures)}
        if not len(session):
            return outcomes
        session.step()


def test_loops_of_requests_that_join_between_steps_are_those_of_one_call(pipeline: LoopPipeline) -> None:
    window_s = pipeline.mel.x_res * pipeline.mel.hop_length / pipeline.mel.sample_rate
    image = np.random.default_rng(0).integers(0, 256, (pipeline.mel.y_res, pipeline.mel.x_res), np.uint8)
    requests: list[Request] = [
        GenerateRequest(seed=1, steps=5),
        VaryRequest(kind="vary", seed=2, steps=4, source="image"),
        ExtendRequest(kind="extend", seed=3, steps=2, duration_s=2 * window_s),
        InterpolateRequest(kind="interpolate", seed=4, steps=3, seeds=(1, 2)),
        GenerateRequest(seed=5, steps=2, seamless=True),
    ]
    expected = {loop.number: loop for loop in pipeline.generate(requests, sources={"image": image})}
    session = pipeline.session()
    outcomes: dict[int, Loop | Failure] = {}
    for number, request in enumerate(requests):
        session.add(session.started(number, request, sources={"image": image}))
        session.step()
        ready, failures = session.results()
        outcomes |= {outcome.number: outcome for outcome in (*session.render(ready), *failures)}
    outcomes |= drained(session)
    assert outcomes.keys() == expected.keys()
    for number, loop in expected.items():
        outcome = outcomes[number]
        assert isinstance(outcome, Loop)
        assert (outcome.audio.tobytes(), outcome.request) == (loop.audio.tobytes(), loop.request)


def test_a_cancelled_request_frees_its_slot_for_one_that_waits(pipeline: LoopPipeline) -> None:
    session = pipeline.session()
    started = [session.started(number, GenerateRequest(seed=number, steps=3)) for number in range(5)]
    for one in started:
        session.add(one)
    assert not session.has_room
    session.step()
    assert session.cancel(started[0])
    assert not session.cancel(started[0])
    assert len(session) == 4
    session.step()
    assert session.cancel(started[4])
    assert session.has_room
    assert sorted(drained(session)) == [1, 2, 3]


def test_a_source_that_cannot_be_read_fails_alone(pipeline: LoopPipeline) -> None:
    session = pipeline.session()
    session.add(session.started(0, VaryRequest(kind="vary", source="/no/such/file.wav", steps=2)))
    session.add(session.started(1, GenerateRequest(steps=2)))
    outcomes = drained(session)
    assert [type(outcomes[number]) for number in (0, 1)] == [Failure, Loop]
    with pytest.raises(ValueError, match="scheduler flow_heun"):
        session.started(2, GenerateRequest(scheduler="flow_heun"))
