"""Limits of API keys: rates, concurrency and seconds of audio, each key for itself."""

import itertools
import random

import pytest

from audiodiff_platform.serve.limits import LARGE_NUMBER_OF_KEYS, Admission, KeyLimits, Limits, Refusal
from tests.clocks import Clock


def admitted(outcome: Admission | Refusal) -> Admission:
    assert isinstance(outcome, Admission), outcome
    return outcome


def refused(outcome: Admission | Refusal) -> Refusal:
    assert isinstance(outcome, Refusal), outcome
    return outcome


def test_without_limits_everything_is_admitted() -> None:
    limits = KeyLimits(Limits())
    admissions = [admitted(limits.admit("alice", 1e6)) for _ in range(100)]
    assert admissions[-1].headers == {}
    for admission in admissions:
        limits.settle(admission, 1e6)


def test_requests_per_minute() -> None:
    clock = Clock(100)
    limits = KeyLimits(Limits(requests_per_minute=3), clock)
    headers = [admitted(limits.admit("alice", 5)).headers for _ in range(3)]
    assert [header["x-ratelimit-remaining-requests"] for header in headers] == ["2", "1", "0"]
    assert headers[0] == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "20s",
    }
    refusal = refused(limits.admit("alice", 5))
    assert (refusal.limit, refusal.retry_after_s, refusal.headers["Retry-After"]) == ("requests", 20, "20")
    assert refusal.headers["x-ratelimit-reset-requests"] == "60s"
    admitted(limits.admit("bob", 5))
    clock.now += 19
    assert refused(limits.admit("alice", 5)).retry_after_s == 1
    clock.now += 1
    admitted(limits.admit("alice", 5))


def test_concurrent_requests() -> None:
    limits = KeyLimits(Limits(concurrent_requests=2), Clock(100))
    first, second = (admitted(limits.admit("alice", 5)) for _ in range(2))
    assert (first.headers["x-ratelimit-remaining-concurrent-requests"], second.headers) == (
        "1",
        {"x-ratelimit-limit-concurrent-requests": "2", "x-ratelimit-remaining-concurrent-requests": "0"},
    )
    refusal = refused(limits.admit("alice", 5))
    assert "2 requests of this API key are running" in refusal.message
    assert int(refusal.headers["Retry-After"]) >= 1
    limits.settle(first, 5)
    limits.settle(first, 5)
    admitted(limits.admit("alice", 5))
    refused(limits.admit("alice", 5))


def test_audio_is_reserved_and_then_settled() -> None:
    clock = Clock(100)
    limits = KeyLimits(Limits(audio_s_per_minute=60, audio_s_per_hour=100), clock)
    first = admitted(limits.admit("alice", 40))
    refusal = refused(limits.admit("alice", 30))
    assert (refusal.limit, refusal.retry_after_s) == ("audio-seconds-minute", 10)
    limits.settle(first, 0)
    second = admitted(limits.admit("alice", 60))
    assert second.headers["x-ratelimit-remaining-audio-seconds-minute"] == "0"
    limits.settle(second, 90)
    clock.now += 60
    refusal = refused(limits.admit("alice", 59))
    assert refusal.limit == "audio-seconds-hour"
    clock.now += refusal.retry_after_s
    admitted(limits.admit("alice", 59))


def test_a_new_key_may_use_a_whole_period_at_once() -> None:
    limits = KeyLimits(Limits(audio_s_per_hour=1), itertools.count().__next__)
    admitted(limits.admit("alice", 1))


def test_a_request_that_no_wait_would_admit_is_a_mistake() -> None:
    limits = KeyLimits(Limits(audio_s_per_minute=60))
    with pytest.raises(ValueError, match=r"61\.0 s of audio exceed the limit of 60\.0 s per 60 s"):
        limits.admit("alice", 61)
    admitted(limits.admit("alice", 60))


def test_a_refused_request_costs_nothing() -> None:
    limits = KeyLimits(Limits(requests_per_minute=2, audio_s_per_minute=10), Clock(100))
    admitted(limits.admit("alice", 10))
    for _ in range(5):
        assert refused(limits.admit("alice", 10)).limit == "audio-seconds-minute"
    admitted(limits.admit("alice", 0))


@pytest.mark.parametrize("seed", range(4))
def test_no_window_admits_more_than_a_burst_and_a_refill(seed: int) -> None:
    draw, clock = random.Random(seed), Clock(100)
    limits = KeyLimits(Limits(requests_per_minute=10, audio_s_per_minute=100, concurrent_requests=4), clock)
    running: list[Admission] = []
    made: list[tuple[float, float]] = []
    for _ in range(2_000):
        clock.now += draw.expovariate(1)
        outcome = limits.admit("alice", draw.uniform(0, 30))
        if isinstance(outcome, Admission):
            running.append(outcome)
        elif outcome.limit != "concurrent-requests":
            assert outcome.retry_after_s >= 1
        assert len(running) <= 4
        if running and draw.random() < 0.5:
            done = running.pop(draw.randrange(len(running)))
            limits.settle(done, done.audio_s)
            made.append((clock.now, done.audio_s))
    start, end = 100.0, clock.now
    assert len(made) <= 10 + 10 * (end - start) / 60
    assert sum(audio for _, audio in made) <= 100 + 100 * (end - start) / 60
    assert len(made) > 100


def test_idle_keys_take_no_memory_once_there_are_many() -> None:
    clock = Clock(100)
    limits = KeyLimits(Limits(requests_per_minute=60, concurrent_requests=2), clock)
    running = admitted(limits.admit("running", 1))
    for number in range(5 * LARGE_NUMBER_OF_KEYS):
        clock.now += 0.1
        limits.settle(admitted(limits.admit(f"key-{number}", 1)), 1)
    assert len(limits._keys) <= LARGE_NUMBER_OF_KEYS
    assert running.key in limits._keys


@pytest.mark.parametrize("wrong", [{"requests_per_minute": 0.5}, {"concurrent_requests": 0}, {"audio_s_per_hour": -1}])
def test_limits_are_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} "):
        Limits(**wrong)  # type: ignore[arg-type]
