"""What is made of each checkpoint of a diffusion training, beside it (`validation_task.py`).

    OUTPUT_DIR/validation/<step>.json          mean loss on the held-out tracks, and by noise level; the Fréchet distance of many previews
    OUTPUT_DIR/tensorboard/validation/         the same, with pictures and sounds of the seeds from 0 on

The averaged weights are looked at, since the model is made of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from audiodiff_core.checkpoint import Model
from audiodiff_core.evaluation import evaluate_images, statistics_of
from audiodiff_core.evaluation.features import BANDS as BANDS_COMPARED
from audiodiff_core.mel import Images
from audiodiff_core.pipeline import Loop
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_core.training import TrainState
from audiodiff_core.training.validation import band_means, validation_losses
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.latents import LatentsDataset
from audiodiff_platform.mel_data.mel_dataset import VALIDATION_SPLIT, TrainingImages
from audiodiff_platform.mel_data.run_folder import EMA_WEIGHTS
from audiodiff_platform.mel_data.run_folder import VALIDATION_RESULTS as FOLDER
from audiodiff_platform.mel_data.sample_order import samples, spread_places
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import local_checkpoint, step_of
from audiodiff_platform.train.inputs import TrainingInputs, held_out, load_training_inputs
from audiodiff_platform.train.options import FRECHET_FROM, TrainOptions
from audiodiff_platform.train.run_log import TensorBoardFolder

ROWS_AT_MOST = 1_024
BATCH_SIZE = 16
BANDS = 4
PREVIEW_STEPS = 50


def validates(options: TrainOptions, dataset: TrainingImages) -> bool:
    """Whether there is anything to be made of a checkpoint: held-out tracks, or previews that are shown or judged."""
    judged = options.preview_count >= FRECHET_FROM
    return held_out(dataset) is not None or judged or ("tensorboard" in options.report_to and options.preview_count > 0)


def require_previews(options: TrainOptions, dataset: TrainingImages) -> None:
    """Raises ValueError where so many previews are asked for that they are compared, and their images cannot be."""
    if options.preview_count >= FRECHET_FROM and dataset.mel.y_res % BANDS_COMPARED:
        raise ValueError(
            f"preview_count {options.preview_count}: from {FRECHET_FROM} on their Fréchet distance is taken, which needs a multiple of {BANDS_COMPARED} "
            f"mel bands, {options.dataset_name} has {dataset.mel.y_res}: ask for at most {FRECHET_FROM - 1}"
        )


def validate(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Looks at the checkpoint `name` of the run folder; gives what it found, which it writes there too."""
    told = TrainOptions.model_validate(options)
    output = Folder(told.output_dir)
    on_gpu = torch.cuda.is_available()
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision=told.mixed_precision if on_gpu else "no")
    start = load_training_inputs(told)
    try:
        with local_checkpoint(output, name) as (folder, _):
            start.network.load_state_dict(load_file(folder / EMA_WEIGHTS))
    except FileNotFoundError:
        say(f"validation: {name} was superseded before its turn")
        return {}
    found = _held_out_losses(told, start, accelerator)
    if found:  # what is known, whatever becomes of the previews
        output.write_json(f"{FOLDER}/{step_of(name)}.json", found)
    previews = _previews(told, start)
    if len(previews) >= FRECHET_FROM:
        images = np.stack([loop.image for loop in previews])
        found |= evaluate_images(images, statistics_of(_real_images(start.dataset)))
    output.write_json(f"{FOLDER}/{step_of(name)}.json", found)
    if "tensorboard" in told.report_to:
        _show(TensorBoardFolder(output, FOLDER), step_of(name), found, previews, start.mel.sample_rate)
    if "validation_loss" in found:
        say(f"step {step_of(name)}: validation loss {found['validation_loss']:.4f}")
    return found


def _held_out_losses(options: TrainOptions, start: TrainingInputs, accelerator: Accelerator) -> dict[str, float]:
    dataset = held_out(start.dataset)
    if dataset is None:
        return {}
    latents = None if options.latents is None else LatentsDataset(options.latents, VALIDATION_SPLIT)
    state = TrainState(accelerator, start.network, start.objective, learning_rate=0.0, seed=options.seed, vae=start.vae)
    state.network.eval()
    places = spread_places(dataset, ROWS_AT_MOST)
    fractions, losses = [], []
    for first in range(0, len(places), BATCH_SIZE):
        batch = samples(
            range(first, min(first + BATCH_SIZE, len(places))),
            places[first : first + BATCH_SIZE],
            dataset,
            latents,
            start.encodings,
        )
        where, values = validation_losses(accelerator, state, state.network, batch)
        fractions.append(where)
        losses.append(values)
    means = band_means(np.concatenate(fractions), np.concatenate(losses), BANDS)
    bands = {
        f"validation_loss_noise_{100 * band // BANDS}_{100 * (band + 1) // BANDS}": mean
        for band, mean in enumerate(means)
        if np.isfinite(mean)
    }
    return {"validation_loss": float(np.concatenate(losses).mean()), **bands}


def _previews(options: TrainOptions, start: TrainingInputs) -> list[Loop]:
    """Loops of the seeds from 0 on; a conditional model is told of files of the dataset, evenly spread."""
    count = options.preview_count
    if count == 0:
        return []
    scheduler = start.objective.scheduler(options.scheduler)
    profile = ExecutionProfile.here()
    pipeline = Model(start.network, scheduler, start.mel, digest="", vae=start.vae).pipeline(profile)
    requests = [GenerateRequest(seed=seed, steps=PREVIEW_STEPS) for seed in range(count)]
    if start.encodings is None:
        loops = list(pipeline.generate(requests))
    else:
        shown = held_out(start.dataset) or start.dataset
        places = spread_places(shown, count)
        vectors = start.encodings.vectors_for(
            [shown.audio_file(*places[number % len(places)]) for number in range(count)]
        )
        loops = list(pipeline.generate(requests, encodings=vectors))
    return sorted(loops, key=lambda loop: loop.request.seed)


def _real_images(dataset: TrainingImages) -> Iterator[Images]:
    shown = held_out(dataset) or dataset
    places = spread_places(shown, ROWS_AT_MOST)
    for first in range(0, len(places), BATCH_SIZE):
        yield np.stack([shown.image(*place) for place in places[first : first + BATCH_SIZE]])


def _show(
    board: TensorBoardFolder, step: int, found: dict[str, float], previews: Sequence[Loop], sample_rate: int
) -> None:
    """Puts figures, pictures (low bands at the bottom) and sounds into TensorBoard's files."""
    for name, value in found.items():
        board.writer.add_scalar(name, value, step)
    for loop in previews:
        title = f"seed {loop.request.seed}"
        board.writer.add_image(title, loop.image[::-1].copy(), step, dataformats="HW")
        board.writer.add_audio(title, torch.from_numpy(loop.audio)[None], step, sample_rate)
    board.close()
