"""Bytes of an item alone, in each slot of a batch, and with others that join, finish and are cancelled."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from audiodiff_core.sampling import Batch, ExecutionProfile, Finished, GenerateRequest, Item, Sampler
from tests.benchmarks.gpu.plan import Plan, Shape
from tests.benchmarks.gpu.report import Report
from tests.benchmarks.gpu.sampling import profile_of, sampler_of


def equality(report: Report, plan: Plan) -> None:
    """Report whether the bytes of an item are those of the item alone.

    `slots` is the number of slots in which they are, of all slots of the batch.
    """
    for compiled in (False, True):
        for precision in plan.compiled_precisions if compiled else plan.precisions:
            profile = profile_of(precision, plan.equality_batch_size, report.device, compiled)
            labels = {
                "preset": plan.equality.preset,
                "precision": precision,
                "compiled": compiled,
                "batch": profile.batch_size,
            }
            report.measure("equality", labels, partial(_compared, plan.equality, profile))


def bytes_alone(sampler: Sampler, item: Item) -> bytes:
    """Return the bytes of the sample of an item that is alone in its batch."""
    return bytes_in_slot(sampler, item, 0, full=False)


def bytes_in_slot(sampler: Sampler, item: Item, slot: int, full: bool = True) -> bytes:
    """Return the bytes of the sample of an item in a slot, with others of the same steps in the other slots.

    Args:
        sampler: The sampler.
        item: The item. It takes one slot.
        slot: The slot.
        full: Whether the slots after that slot are taken too.
    """
    batch = sampler.batch()
    others = [_other(item, 100 + seed) for seed in range(sampler.profile.batch_size - 1)]
    for other in others[:slot]:
        batch.add(other)
    batch.add(item)
    for other in others[slot:] if full else ():
        batch.add(other)
    return _finished(batch, item)


def bytes_in_company(sampler: Sampler, item: Item) -> bytes:
    """Return the bytes of the sample of an item while others join, finish and are cancelled.

    Args:
        sampler: The sampler, with a batch size of 4 or more.
        item: The item, with at least 4 steps.
    """
    batch = sampler.batch()
    short, cancelled, last = (
        _other(item, 201, steps=3, scheduler="unipc"),
        _other(item, 202, steps=9, scheduler="ddpm"),
        _other(item, 203, steps=5, scheduler="euler"),
    )
    batch.add(short)
    batch.step()
    batch.add(item)
    batch.add(cancelled)
    batch.step()
    batch.add(last)
    batch.step()
    assert batch.cancel(cancelled)
    batch.add(_other(item, 204, steps=2, scheduler="ddim"))
    return _finished(batch, item)


def _compared(shape: Shape, profile: ExecutionProfile) -> Mapping[str, Any]:
    """Compare the bytes of one item, which draws noise in its steps."""
    sampler = sampler_of(shape, profile)
    item = Item(GenerateRequest(seed=1, steps=8, scheduler="dpm++_sde"), sampler.sides[1])
    alone = bytes_alone(sampler, item)
    slots = range(profile.batch_size)
    equal = [bytes_in_slot(sampler, item, slot) == alone for slot in slots]
    return {
        "again": bytes_alone(sampler, item) == alone,
        "every_slot": all(equal),
        "slots": f"{sum(equal)}/{len(equal)}",
        "joining_and_cancelled": bytes_in_company(sampler, item) == alone,
    }


def _other(item: Item, seed: int, **changes: Any) -> Item:
    return replace(item, request=item.request.model_copy(update={"seed": seed, **changes}), noise=None)


def _finished(batch: Batch, item: Item) -> bytes:
    """Step a batch until it is empty, and return the bytes of the sample of an item."""
    finished: dict[Item, Finished] = {}
    while len(batch):
        finished |= {outcome.item: outcome for outcome in batch.step() if isinstance(outcome, Finished)}
    return finished[item].sample.numpy().tobytes()
