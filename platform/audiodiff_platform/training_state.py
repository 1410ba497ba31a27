"""Checkpoints of a training run: what one holds, when it is whole, which one a run goes on from.

    OUTPUT_DIR/state/<attempt>/checkpoint_<time>/network.safetensors   live weights
                                                 ema.safetensors       averaged weights
                                                 optimizer.pt          AdamW's moments
                                                 progress.json         step, samples, seconds; the size of each other file

Ray Train puts checkpoints in place file by file, and writes its own list of them over the old one. A kill in the middle of either,
or a killed job's workers, which live on for seconds, would leave a run that Ray cannot go on from. So each attempt is a run of its
own to Ray, and what a run goes on from is found here: the checkpoint furthest in training whose files all have their sizes.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from audiodiff_core.training import TrainState
from audiodiff_platform.storage import Folder

STATE = "state"
FORMAT_VERSION = 1
PROGRESS = "progress.json"


def save_state(state: TrainState, folder: Path) -> None:
    """Writes everything that training needs to go on to a local folder."""
    save_file(_contiguous(state.bare.state_dict()), folder / "network.safetensors")
    save_file(_contiguous(state.ema_state_dict()), folder / "ema.safetensors")
    torch.save(state.optimizer.state_dict(), folder / "optimizer.pt")
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / PROGRESS).write_text(json.dumps({"format_version": FORMAT_VERSION, **state.progress(), "files": sizes}))


def load_state(state: TrainState, folder: Path) -> None:
    """Makes `state` what `save_state` saved."""
    progress = json.loads((folder / PROGRESS).read_text())
    if progress["format_version"] != FORMAT_VERSION:
        raise ValueError(f"checkpoint {folder} was written by another version of audiodiff")
    state.bare.load_state_dict(load_file(folder / "network.safetensors"))
    state.load_ema_state_dict(load_file(folder / "ema.safetensors"))
    state.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    state.load_progress(progress)


def newest_checkpoint(output: Folder) -> str | None:
    """The whole checkpoint of the most steps, as a name in the run folder; None where there is none."""
    steps: dict[str, int] = {}
    for name in output.names(f"{STATE}/*/checkpoint_*/{PROGRESS}"):
        folder = name.removesuffix(f"/{PROGRESS}")
        try:
            progress = output.read_json(name)
            whole = all(output.filesystem.size(output.path(f"{folder}/{file}")) == size for file, size in progress["files"].items())
        except (ValueError, FileNotFoundError):  # cut off by a kill, or not there yet
            continue
        if whole:
            steps[folder] = progress["step"]
    return max(sorted(steps), key=steps.__getitem__, default=None)


def remove_older(output: Folder) -> None:
    """Removes what earlier attempts left, but for the checkpoint that training goes on from."""
    kept = newest_checkpoint(output)
    left = {"/".join(entry.name.split("/")[:3]) for entry in output.walk() if entry.name.startswith(f"{STATE}/")}
    for name in left - {kept}:
        output.remove(name)


def _contiguous(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in weights.items()}
