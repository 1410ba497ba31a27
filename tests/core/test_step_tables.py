"""Tables of coefficients against the steps of diffusers' schedulers."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UniPCMultistepScheduler

from audiodiff_core.diffusion import step_tables
from audiodiff_core.diffusion.methods import METHODS, SchedulerName
from audiodiff_core.diffusion.noise_schedule import Schedule
from audiodiff_core.diffusion.step_probe import Column
from audiodiff_core.diffusion.step_tables import StepTable, step_table
from audiodiff_core.sampling import GenerateRequest
from tests.core.test_schedulers import model, offered


def network(noisy: torch.Tensor) -> torch.Tensor:
    """A prediction that is not linear in its input."""
    return 0.7 * (3 * noisy).sin() + 0.1 * noisy


def by_table(table: StepTable, sample: torch.Tensor, generator: torch.Generator, clip: bool = False) -> torch.Tensor:
    """Sample by the coefficients of a table, one operation after the other, in float64."""
    sample = sample.double()
    clean_1 = clean_2 = anchor = torch.zeros_like(sample)
    for row, draws in zip(table.rows.astype(np.float64), table.draws, strict=True):
        prediction = network((sample * row[Column.INPUT_SCALE]).float()).double()
        clean = row[Column.CLEAN_SAMPLE] * sample + row[Column.CLEAN_PREDICTION] * prediction
        clean = clean.clamp(-1, 1) if clip else clean
        noise = torch.randn(sample.shape, generator=generator).double() if draws else torch.zeros_like(sample)
        operands = [sample, prediction, clean, clean_1, clean_2, anchor, noise]
        stepped = combined(row[Column.NEXT_SAMPLE : Column.NEXT_NOISE + 1], operands)
        operands = [sample, clean, clean_1, clean_2, anchor, stepped]
        anchor = combined(row[Column.ANCHOR_SAMPLE : Column.ANCHOR_NEXT + 1], operands)
        sample, clean_1, clean_2 = stepped, clean, clean_1
    return sample


def combined(coefficients: npt.NDArray[np.float64], operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the linear combination of operands."""
    products = [float(coefficient) * operand for coefficient, operand in zip(coefficients, operands, strict=True)]
    return torch.stack(products).sum(dim=0)


def by_diffusers(schedule: Schedule, start_step: int, sample: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    for call in range(schedule.begin(start_step), schedule.calls):
        prediction = network(schedule.network_input(sample, call))
        sample = schedule.step(prediction, sample, call, generator)
    return sample


def both(model_scheduler: Any, request: GenerateRequest, start_step: int, clip: bool) -> tuple[torch.Tensor, ...]:
    """Return the samples by the table and by diffusers for the same noise, and the noise."""
    schedule = Schedule(model_scheduler, request)
    noise = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(1)) * schedule.init_noise_sigma
    one, other = (torch.Generator().manual_seed(2) for _ in range(2))
    table = step_table(model_scheduler, request, start_step)
    return by_table(table, noise, one, clip), by_diffusers(schedule, start_step, noise, other).double(), noise


@pytest.mark.parametrize(("name", "model_scheduler"), offered(spacings=["trailing"]))
@pytest.mark.parametrize(("steps", "start_step"), [(10, 0), (7, 3), (2, 0)])
def test_a_table_steps_as_diffusers(name: SchedulerName, model_scheduler: Any, steps: int, start_step: int) -> None:
    request = GenerateRequest(scheduler=name, steps=steps)
    ours, theirs, noise = both(model_scheduler, request, start_step, clip=False)
    rounding = 2e-6 * float(noise.abs().max())  # of diffusers' samples in float32, thousands at the start of Euler's
    assert float((ours - theirs).abs().max()) < 1e-4 * max(1.0, float(theirs.abs().max())) + rounding


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_ddim_clamps_as_diffusers(eta: float, zero_terminal_snr: bool) -> None:
    saved = model("v_prediction", zero_terminal_snr, "trailing", clip=True)
    request = GenerateRequest(steps=10, eta=eta)
    ours, theirs, _ = both(saved, request, 0, clip=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    unclamped, *_ = both(saved, request, 0, clip=False)
    assert not torch.allclose(ours, unclamped, atol=1e-2)


@pytest.mark.parametrize("name", ["ddpm", "heun"])
def test_other_methods_clamp_as_diffusers(name: SchedulerName) -> None:
    saved = model("epsilon", clip=True)
    ours, theirs, _ = both(saved, GenerateRequest(scheduler=name, steps=8), 0, clip=True)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


def test_tables_are_shared_by_equal_models_only() -> None:
    request = GenerateRequest(steps=5)
    table = step_table(DDPMScheduler(), request)
    assert step_table(DDPMScheduler(), GenerateRequest(steps=5, seed=9)) is table
    assert step_table(DDPMScheduler(beta_end=0.03), request) is not table
    assert step_table(DDIMScheduler(), request) is not table
    assert step_table(DDPMScheduler(), request, 2) is not table
    assert step_table(DDPMScheduler(), request, 2).calls == 3


def test_threads_measure_a_table_once_and_one_table_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, busy, together = list[int](), threading.Semaphore(1), threading.Barrier(6)

    def measure(saved: Any, options: Any, start_step: int) -> StepTable:
        measured.append(options.steps or 0)
        assert busy.acquire(blocking=False), "another thread measures"
        try:
            return original(saved, options, start_step)
        finally:
            busy.release()

    def table(steps: int) -> StepTable:
        together.wait()
        return step_table(DDPMScheduler(beta_end=0.031), GenerateRequest(steps=steps))

    original = step_tables._measured
    monkeypatch.setattr(step_tables, "_measured", measure)
    with ThreadPoolExecutor(6) as threads:
        tables = list(threads.map(table, [40, 41, 42] * 2))
    assert sorted(measured) == [40, 41, 42]
    assert [table.steps for table in tables] == [40, 41, 42] * 2


def test_a_table_that_cannot_be_measured_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="start_step 6: there are 6 steps"):
            step_table(DDPMScheduler(), GenerateRequest(steps=6), 6)


@pytest.mark.parametrize("name", METHODS)
def test_a_table_knows_its_calls_and_its_noise(name: SchedulerName) -> None:
    saved = model("flow" if name.startswith("flow") else "epsilon")
    table = step_table(saved, GenerateRequest(scheduler=name, steps=6))
    assert table.calls == (11 if METHODS[name].calls_per_step == 2 else 6)
    assert any(table.draws) == (name in ("ddpm", "dpm++_sde", "euler_a"))
    assert tuple(table.rows[-1, [Column.SIGNAL, Column.NOISE_SCALE]]) == (1, 0)
    assert np.isfinite(table.rows).all()


def test_schedulers_that_a_table_cannot_describe_are_refused() -> None:
    request = GenerateRequest(scheduler="unipc", steps=10)
    with pytest.raises(ValueError, match="depends on more than three predictions: use solver_order 2"):
        step_table(UniPCMultistepScheduler(solver_order=3), request)
    assert step_table(UniPCMultistepScheduler(solver_order=2), request).calls == 10
    with pytest.raises(ValueError, match="thresholding of the model's scheduler is not supported"):
        step_table(DDIMScheduler(thresholding=True), GenerateRequest(steps=10))


def test_a_start_beyond_the_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="start_step 5: there are 5 steps, use 0 to 4"):
        step_table(model("epsilon"), GenerateRequest(steps=5), 5)
