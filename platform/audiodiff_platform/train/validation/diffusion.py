"""Validation of the checkpoints of diffusion training, with the averaged weights.

OUTPUT_DIR/validation/<step>.json    mean loss on the held-out tracks, in total and by noise level; Fréchet distance of
                                     the previews, if there are enough
OUTPUT_DIR/tensorboard/validation/   the same values, and images and audio of the previews
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from audiodiff_core.checkpoint import Model
from audiodiff_core.evaluation import evaluate_images, statistics_of
from audiodiff_core.evaluation.features import BANDS as FEATURE_BANDS
from audiodiff_core.mel import Images
from audiodiff_core.pipeline import Loop, LoopPipeline
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
from audiodiff_platform.train.inputs import TrainingInputs, load_training_inputs, validation_split
from audiodiff_platform.train.options import MIN_FRECHET_PREVIEWS, TrainOptions
from audiodiff_platform.train.run_log import TensorBoardFolder

MAX_ROWS = 1_024
BATCH_SIZE = 16
NOISE_BANDS = 4
PREVIEW_STEPS = 50


def validates(options: TrainOptions, dataset: TrainingImages) -> bool:
    """Return True if checkpoints can be validated.

    Validation needs held-out tracks, or previews that are compared with the dataset or shown in TensorBoard.
    """
    compared = options.preview_count >= MIN_FRECHET_PREVIEWS
    shown = options.preview_count > 0 and "tensorboard" in options.report_to
    return validation_split(dataset) is not None or compared or shown


def require_previews(options: TrainOptions, dataset: TrainingImages) -> None:
    """Check that the Fréchet distance of the previews can be computed, if there are enough previews.

    Raises:
        ValueError: The number of mel bands does not suit the features.
    """
    if options.preview_count >= MIN_FRECHET_PREVIEWS and dataset.mel.y_res % FEATURE_BANDS:
        raise ValueError(
            f"preview_count {options.preview_count}: the Fréchet distance of {MIN_FRECHET_PREVIEWS} or more previews "
            f"needs a multiple of {FEATURE_BANDS} mel bands, but {options.dataset_name} has {dataset.mel.y_res}: "
            f"use at most {MIN_FRECHET_PREVIEWS - 1}"
        )


def validate(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Validate the averaged weights of a checkpoint.

    Args:
        name: Name of the checkpoint in the run folder.
        options: Options of the run as a dictionary.

    Returns:
        The validation metrics, which are also written to the run folder. Empty if the checkpoint was removed.
    """
    train_options = TrainOptions.model_validate(options)
    output = Folder(train_options.output_dir)
    on_gpu = torch.cuda.is_available()
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision=train_options.precision if on_gpu else "no")
    inputs = load_training_inputs(train_options)
    try:
        with local_checkpoint(output, name) as (folder, _):
            inputs.network.load_state_dict(load_file(folder / EMA_WEIGHTS))
    except FileNotFoundError:
        say(f"validation of {name} skipped: the checkpoint was removed because newer checkpoints exist")
        return {}
    metrics = _held_out_losses(train_options, inputs, accelerator)
    if metrics:  # keeps the losses if the previews fail
        output.write_json(f"{FOLDER}/{step_of(name)}.json", metrics)
    previews = _previews(train_options, inputs)
    if len(previews) >= MIN_FRECHET_PREVIEWS:
        images = np.stack([loop.image for loop in previews])
        metrics |= evaluate_images(images, statistics_of(_real_images(inputs.dataset)))
    output.write_json(f"{FOLDER}/{step_of(name)}.json", metrics)
    if "tensorboard" in train_options.report_to:
        board = TensorBoardFolder(output, FOLDER)
        _write_board(board, step_of(name), metrics, previews, inputs.mel.sample_rate)
    if "validation_loss" in metrics:
        say(f"step {step_of(name)}: validation loss {metrics['validation_loss']:.4f}")
    return metrics


def _held_out_losses(options: TrainOptions, inputs: TrainingInputs, accelerator: Accelerator) -> dict[str, float]:
    """Return the mean loss on the held-out tracks, in total and by noise level.

    Empty if the dataset has no held-out tracks.
    """
    dataset = validation_split(inputs.dataset)
    if dataset is None:
        return {}
    latents = None if options.latents is None else LatentsDataset(options.latents, VALIDATION_SPLIT)
    state = TrainState(
        accelerator, inputs.network, inputs.objective, learning_rate=0.0, seed=options.seed, vae=inputs.vae
    )
    state.network.eval()
    places = spread_places(dataset, MAX_ROWS)
    noise_fractions, losses = [], []
    for first in range(0, len(places), BATCH_SIZE):
        batch = samples(
            range(first, min(first + BATCH_SIZE, len(places))),
            places[first : first + BATCH_SIZE],
            dataset,
            latents,
            inputs.encodings,
        )
        fractions, values = validation_losses(accelerator, state, state.network, batch)
        noise_fractions.append(fractions)
        losses.append(values)
    means = band_means(np.concatenate(noise_fractions), np.concatenate(losses), NOISE_BANDS)
    bands = {
        f"validation_loss_noise_{100 * band // NOISE_BANDS}_{100 * (band + 1) // NOISE_BANDS}": mean
        for band, mean in enumerate(means)
        if np.isfinite(mean)
    }
    return {"validation_loss": float(np.concatenate(losses).mean()), **bands}


def _previews(options: TrainOptions, inputs: TrainingInputs) -> list[Loop]:
    """Generate loops from seeds 0, 1, ...

    The conditions are the encodings of files that are evenly spread over the dataset.
    """
    count = options.preview_count
    if count == 0:
        return []
    scheduler = inputs.objective.scheduler(options.scheduler)
    profile = ExecutionProfile.here()
    pipeline = LoopPipeline.of(Model(inputs.network, scheduler, inputs.mel, digest="", vae=inputs.vae), profile)
    requests = [GenerateRequest(seed=seed, steps=PREVIEW_STEPS) for seed in range(count)]
    if inputs.encodings is None:
        loops = list(pipeline.generate(requests))
    else:
        source = validation_split(inputs.dataset) or inputs.dataset
        places = spread_places(source, count)
        vectors = inputs.encodings.vectors_for(
            [source.audio_file(*places[number % len(places)]) for number in range(count)]
        )
        loops = list(pipeline.generate(requests, encodings=vectors))
    return sorted(loops, key=lambda loop: loop.request.seed)


def _real_images(dataset: TrainingImages) -> Iterator[Images]:
    """Yield batches of held-out images, or of training images if there are no held-out tracks."""
    source = validation_split(dataset) or dataset
    places = spread_places(source, MAX_ROWS)
    for first in range(0, len(places), BATCH_SIZE):
        yield np.stack([source.image(*place) for place in places[first : first + BATCH_SIZE]])


def _write_board(
    board: TensorBoardFolder, step: int, metrics: dict[str, float], previews: Sequence[Loop], sample_rate: int
) -> None:
    """Write metrics, images (with the low mel bands at the bottom) and audio to TensorBoard."""
    for name, value in metrics.items():
        board.writer.add_scalar(name, value, step)
    for loop in previews:
        title = f"seed {loop.request.seed}"
        board.writer.add_image(title, loop.image[::-1].copy(), step, dataformats="HW")
        board.writer.add_audio(title, torch.from_numpy(loop.audio)[None], step, sample_rate)
    board.close()
