"""Samples of one shape in the slots of a batch, stepped together by a few operations on the whole batch.

Each operation is elementwise, with one coefficient per slot, so that the bits of a sample do not depend on its slot or
on the other slots. Coefficients, timesteps and encodings are on the device. No step waits for the device.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.diffusion import seeds as streams
from audiodiff_core.diffusion.step_probe import Column
from audiodiff_core.diffusion.step_tables import StepTable
from audiodiff_core.sampling.encodings import placed_encoding
from audiodiff_core.sampling.item import Failed, Finished, Item, Outcome, initial_noise
from audiodiff_core.sampling.network import Network

Terms = tuple[tuple[Column, str], ...]

TERMS: dict[str, Terms] = {
    "next": (
        (Column.NEXT_SAMPLE, "sample"),
        (Column.NEXT_PREDICTION, "prediction"),
        (Column.NEXT_CLEAN, "clean"),
        (Column.NEXT_CLEAN_1, "clean_1"),
        (Column.NEXT_CLEAN_2, "clean_2"),
        (Column.NEXT_ANCHOR, "anchor"),
        (Column.NEXT_NOISE, "noise"),
    ),
    "anchor": (
        (Column.ANCHOR_SAMPLE, "sample"),
        (Column.ANCHOR_CLEAN, "clean"),
        (Column.ANCHOR_CLEAN_1, "clean_1"),
        (Column.ANCHOR_CLEAN_2, "clean_2"),
        (Column.ANCHOR_ANCHOR, "anchor"),
        (Column.ANCHOR_NEXT, "next"),
    ),
}
"""Terms of the sums for the next sample and the next anchor."""


@dataclass(eq=False)
class Member:
    """An item in its slots.

    Attributes:
        item: The item.
        table: Coefficients of its network calls.
        slots: Its slot and, with guidance, the slot of its unconditional prediction.
        step_noise: Generator of the noise of its steps.
        call: Number of calls made.
    """

    item: Item
    table: StepTable
    slots: tuple[int, ...]
    step_noise: torch.Generator
    call: int = 0


class Pool:
    """Slots of one batch for items of equal width and padding.

    Args:
        network: The network.
        shape: (channels, height, width) of a sample.
        circular: Whether the convolutions pad circularly in time.
        batch_size: Slots of a network call.
        clip: Range of a predicted clean sample, or None.
    """

    def __init__(
        self, network: Network, shape: tuple[int, int, int], circular: bool, batch_size: int, clip: float | None
    ) -> None:
        self._network, self._circular, self._batch_size, self._clip = network, circular, batch_size, clip
        self._device = torch.device(network.profile.device)
        self._size = max(2, batch_size)  # guidance takes two slots, in two calls if the batch size is 1
        self._shape = shape
        self.members: list[Member] = []
        names = ("sample", "clean", "clean_1", "clean_2", "anchor", "next", "next anchor", "product")
        self._state = {name: self._zeros() for name in names}
        self._free = list(reversed(range(self._size)))
        self._rows = np.zeros((self._size, len(Column)), np.float32)
        self._encodings = (
            None
            if network.encoding_dim is None
            else torch.zeros(self._size, 1, network.encoding_values, device=self._device)
        )
        self._kept: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self._batch_size - sum(len(member.slots) for member in self.members)

    def has_room(self, item: Item) -> bool:
        """Return whether an item can join."""
        return not self.members or self.free >= item.batch_slots

    def join(self, item: Item, table: StepTable) -> Member:
        """Put an item into free slots."""
        slots = tuple(self._free.pop() for _ in range(item.batch_slots))
        purpose = f"step {item.window}" if item.window else "step"
        member = Member(item, table, slots, streams.derived(item.request.seed, purpose))
        self.members.append(member)
        slot = slots[0]
        if item.inverted:
            assert item.clean is not None
            self._state["sample"][slot] = self._state["anchor"][slot] = self._to_device(item.clean)
        else:
            self._start(item, table, slot)
        if self._encodings is not None:
            for own in slots:
                self._encodings[own].zero_()
            if item.encoding is not None:
                self._encodings[slot, 0] = self._to_device(placed_encoding(item, self._network.beats))
        return member

    def leave(self, member: Member) -> None:
        """Free the slots of a member, and clear them: a number that is not finite would stay there."""
        self.members.remove(member)
        for slot in member.slots:
            for state in self._state.values():
                state[slot].zero_()
            self._rows[slot] = 0
            self._free.append(slot)
        if self._kept is not None:
            self._kept[0][member.slots[0]].zero_()
            if all(other.item.keep is None for other in self.members):
                self._kept = None

    def step(self) -> list[Outcome]:
        """Make one network call, move each sample to its next level, and remove the finished items."""
        for member in self.members:
            self._rows[member.slots[0]] = member.table.rows[member.call]
        rows = self._to_device(torch.from_numpy(self._rows.copy()))
        columns = rows.T[:, :, None, None, None]
        prediction = self._prediction(rows, columns)
        self._state["prediction"] = prediction
        if any(member.table.draws[member.call] for member in self.members):
            self._state["noise"] = self._draw()
        self._advance(columns, np.any(self._rows != 0, axis=0))
        for member in self.members:
            member.call += 1
        return self._take_finished()

    def preview(self, member: Member) -> torch.Tensor:
        """Return the clean sample (channels, height, width) that the last call predicted, on the CPU."""
        return self._state["clean_1"][member.slots[0]].to("cpu", copy=True)

    def _start(self, item: Item, table: StepTable, slot: int) -> None:
        noise = initial_noise(item.request.seed, self._shape, item.window) if item.noise is None else item.noise
        noise = self._to_device(noise)
        clean = None if item.clean is None else self._to_device(item.clean)
        signal, scale = table.first_level
        if clean is None or (item.keep is not None and item.start_step == 0):
            self._state["sample"][slot] = noise * table.init_noise_sigma
        else:
            self._state["sample"][slot] = signal * clean + scale * noise
        if item.keep is not None:
            assert clean is not None
            if self._kept is None:
                mask = torch.zeros(self._size, 1, *self._shape[1:], dtype=torch.bool, device=self._device)
                self._kept = mask, self._zeros(), self._zeros()
            for tensor, content in zip(self._kept, (self._to_device(item.keep), clean, noise), strict=True):
                tensor[slot] = content
            keep = self._kept[0][slot]
            self._state["sample"][slot] = torch.where(keep, signal * clean + scale * noise, self._state["sample"][slot])

    def _prediction(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Compute the predictions of all slots, with guidance."""
        inputs = self._state["sample"]
        if any(member.table.rows[member.call, Column.INPUT_SCALE] != 1 for member in self.members):
            inputs = torch.mul(inputs, columns[Column.INPUT_SCALE], out=self._state["product"])
        timesteps = rows[:, Column.TIMESTEP]
        guided = [member for member in self.members if len(member.slots) == 2]
        if guided:
            sources = list(range(self._size))
            for member in guided:
                sources[member.slots[1]] = member.slots[0]
            index = self._to_device(torch.tensor(sources))
            inputs, timesteps = inputs[index], timesteps[index]
        used = 1 + max(slot for member in self.members for slot in member.slots)
        outputs = [
            self._network(
                inputs[first : first + self._batch_size],
                timesteps[first : first + self._batch_size],
                None if self._encodings is None else self._encodings[first : first + self._batch_size],
                self._circular,
            )
            for first in range(0, self._size, self._batch_size)
            if first < used
        ]
        if len(outputs) * self._batch_size < self._size:
            outputs.append(torch.zeros_like(outputs[0]))
        prediction = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        for member in guided:
            conditional, unconditional = (prediction[slot] for slot in member.slots)
            prediction[member.slots[0]] = guided_prediction(
                conditional, unconditional, member.item.request.guidance_scale, member.item.request.guidance_rescale
            )
        return prediction

    def _draw(self) -> torch.Tensor:
        """Draw the noise of this step, while the device computes the prediction."""
        noise = torch.zeros(self._size, *self._shape, pin_memory=self._device.type == "cuda")
        for member in self.members:
            if member.table.draws[member.call]:
                noise[member.slots[0]] = torch.randn(1, *self._shape, generator=member.step_noise)[0]
        return noise.to(self._device, non_blocking=True, memory_format=torch.channels_last)

    def _advance(self, columns: torch.Tensor, used: npt.NDArray[np.bool_]) -> None:
        """Move all samples to their next levels. `used` tells which columns are not zero in every slot."""
        state = self._state
        clean = torch.mul(state["sample"], columns[Column.CLEAN_SAMPLE], out=state["clean"])
        clean.addcmul_(state["prediction"], columns[Column.CLEAN_PREDICTION])
        if self._clip is not None:
            clean.clamp_(-self._clip, self._clip)
        self._sum(TERMS["next"], columns, used, state["next"])
        if self._kept is not None:
            keep, content, noise = self._kept
            level = torch.mul(content, columns[Column.SIGNAL])
            level.addcmul_(noise, columns[Column.NOISE_SCALE])
            torch.where(keep, level, state["next"], out=state["next"])
        if used[Column.ANCHOR_SAMPLE : Column.ANCHOR_NEXT + 1].any():
            self._sum(TERMS["anchor"], columns, used, state["next anchor"])
            state["anchor"], state["next anchor"] = state["next anchor"], state["anchor"]
        state["clean"], state["clean_1"], state["clean_2"] = state["clean_2"], state["clean"], state["clean_1"]
        state["sample"], state["next"] = state["next"], state["sample"]

    def _sum(self, terms: Terms, columns: torch.Tensor, used: npt.NDArray[np.bool_], total: torch.Tensor) -> None:
        """Write the sum of the used terms to `total`."""
        first, *others = [term for term in terms if used[term[0]]] or [terms[0]]
        torch.mul(self._state[first[1]], columns[first[0]], out=total)
        for column, operand in others:
            total.addcmul_(self._state[operand], columns[column])

    def _take_finished(self) -> list[Outcome]:
        """Remove the finished items and copy their samples to the CPU, all at once."""
        finished = [member for member in self.members if member.call == member.table.calls]
        if not finished:
            return []
        samples = torch.stack([self._state["sample"][member.slots[0]] for member in finished]).cpu()
        for member in finished:
            self.leave(member)
        return [_outcome(member.item, sample) for member, sample in zip(finished, samples, strict=True)]

    def _zeros(self) -> torch.Tensor:
        zeros = torch.zeros(self._size, *self._shape, device=self._device)
        return zeros.contiguous(memory_format=torch.channels_last)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)


def guided_prediction(
    conditional: torch.Tensor, unconditional: torch.Tensor, scale: float, rescale: float
) -> torch.Tensor:
    """Combine two predictions by classifier-free guidance.

    Args:
        conditional: Prediction (channels, height, width) with the encoding.
        unconditional: Prediction without the encoding.
        scale: Guidance scale (Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022).
        rescale: Share of the rescaled prediction, whose standard deviation is that of the conditional prediction
            (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, section 3.4).
    """
    guided = unconditional + scale * (conditional - unconditional)
    if not rescale:
        return guided
    rescaled = guided * (conditional.std() / guided.std())
    return rescale * rescaled + (1 - rescale) * guided


def _outcome(item: Item, sample: torch.Tensor) -> Outcome:
    """Check a sample. An image cannot represent NaN and infinity, so that the error would go unnoticed."""
    if bool(torch.isfinite(sample).all()):
        return Finished(item, sample)
    return Failed(
        item,
        f"seed {item.request.seed}: the network's sample is not finite: use precision bf16 or fp32, or another model",
    )
