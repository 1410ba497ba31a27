"""Validation of the checkpoints of diffusion training, with the averaged weights.

OUTPUT_DIR/validation/<step>.json    mean loss on the held-out tracks, in total and by noise level; Fréchet distance of
                                     the previews, if there are enough
OUTPUT_DIR/tensorboard/validation/   the same values, and images and audio of the previews
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

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
from audiodiff_platform.mel_data.run_folder import VALIDATION_RESULTS as FOLDER
from audiodiff_platform.mel_data.sample_order import samples, spread_places
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import local_checkpoint, step_of
from audiodiff_platform.train.inputs import TrainingInputs, load_training_inputs, validation_split
from audiodiff_platform.train.options import MIN_FRECHET_PREVIEWS, TrainOptions
from audiodiff_platform.train.run_log import TensorBoardFolder
from audiodiff_platform.train.sharded_checkpoints import averaged_weights

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
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision=train_options.autocast if on_gpu else "no")
    inputs = load_training_inputs(train_options)
    try:
        with local_checkpoint(output, name) as (folder, _):
            inputs.network.load_state_dict(averaged_weights(folder))
    except FileNotFoundError:
        say(f"validation of {name} skipped: the checkpoint was removed because newer checkpoints exist")
        return {}
    state = TrainState(
        accelerator, inputs.network, inputs.objective, learning_rate=0.0, seed=train_options.seed, vae=inputs.vae
    )
    held_out = held_out_losses(train_options, inputs, accelerator, state)
    keep_losses(output, step_of(name), held_out)
    return write_results(train_options, inputs, step_of(name), held_out, previews(train_options, inputs))


@dataclass(frozen=True)
class HeldOutLosses:
    """Losses of held-out rows.

    Args:
        numbers: Numbers of the rows.
        noise_fractions: Noise levels of the rows, in [0, 1).
        values: Losses of the rows.
    """

    numbers: list[int]
    noise_fractions: list[float]
    values: list[float]

    @staticmethod
    def joined(parts: Sequence["HeldOutLosses"]) -> "HeldOutLosses":
        """Return the losses of all parts, in the order of the rows."""
        rows = sorted(
            row for part in parts for row in zip(part.numbers, part.noise_fractions, part.values, strict=True)
        )
        return (
            HeldOutLosses(*(list(column) for column in zip(*rows, strict=True))) if rows else HeldOutLosses([], [], [])
        )

    def metrics(self) -> dict[str, float]:
        """Return the mean loss, in total and by noise level. Empty if there are no held-out rows."""
        if not self.values:
            return {}
        means = band_means(np.array(self.noise_fractions), np.array(self.values), NOISE_BANDS)
        bands = {
            f"validation_loss_noise_{100 * band // NOISE_BANDS}_{100 * (band + 1) // NOISE_BANDS}": mean
            for band, mean in enumerate(means)
            if np.isfinite(mean)
        }
        return {"validation_loss": float(np.mean(self.values)), **bands}


def held_out_losses(
    options: TrainOptions,
    inputs: TrainingInputs,
    accelerator: Accelerator,
    state: TrainState,
    *,
    rank: int = 0,
    world: int = 1,
) -> HeldOutLosses:
    """Compute the losses of every `world`-th row of the held-out tracks, from row `rank` on.

    Args:
        options: Options of the run.
        inputs: The data.
        accelerator: The accelerator of `state`.
        state: The state whose network is validated.
        rank: First row.
        world: Distance between rows.
    """
    dataset = validation_split(inputs.dataset)
    if dataset is None:
        return HeldOutLosses([], [], [])
    latents = None if options.latents is None else LatentsDataset(options.latents, VALIDATION_SPLIT)
    places = spread_places(dataset, MAX_ROWS)
    numbers = range(rank, len(places), world)
    training = state.bare.training
    state.bare.eval()
    parts = []
    for first in range(0, len(numbers), BATCH_SIZE):
        rows = numbers[first : first + BATCH_SIZE]
        batch = samples(rows, [places[row] for row in rows], dataset, latents, inputs.encodings)
        fractions, values = validation_losses(accelerator, state, state.bare, batch)
        parts.append(HeldOutLosses(list(rows), fractions.tolist(), values.tolist()))
    state.bare.train(training)
    return HeldOutLosses.joined(parts)


def keep_losses(output: Folder, step: int, held_out: HeldOutLosses) -> None:
    """Write the losses to the run folder, so that they are kept if the previews fail."""
    if held_out.values:
        output.write_json(f"{FOLDER}/{step}.json", held_out.metrics())


def write_results(
    options: TrainOptions, inputs: TrainingInputs, step: int, held_out: HeldOutLosses, loops: Sequence[Loop]
) -> dict[str, Any]:
    """Write the validation metrics and the previews to the run folder, and return the metrics."""
    output, metrics = Folder(options.output_dir), held_out.metrics()
    if len(loops) >= MIN_FRECHET_PREVIEWS:
        images = np.stack([loop.image for loop in loops])
        metrics |= evaluate_images(images, statistics_of(_real_images(inputs.dataset)))
    output.write_json(f"{FOLDER}/{step}.json", metrics)
    if "tensorboard" in options.report_to:
        _write_board(TensorBoardFolder(output, FOLDER), step, metrics, loops, inputs.mel.sample_rate)
    if "validation_loss" in metrics:
        say(f"step {step}: validation loss {metrics['validation_loss']:.4f}")
    return metrics


def previews(
    options: TrainOptions, inputs: TrainingInputs, network: Any = None, *, rank: int = 0, world: int = 1
) -> list[Loop]:
    """Generate loops from every `world`-th of the seeds 0, 1, ..., from seed `rank` on.

    The conditions are the encodings of slices that are evenly spread over the dataset.

    Args:
        options: Options of the run.
        inputs: The data, and the network unless `network` is given.
        network: The network, or None for the network of `inputs`.
        rank: First seed.
        world: Distance between seeds.
    """
    seeds = range(rank, options.preview_count, world)
    if not seeds:
        return []
    scheduler = inputs.objective.scheduler(options.scheduler)
    model = Model(network or inputs.network, scheduler, inputs.mel, digest="", vae=inputs.vae)
    pipeline = LoopPipeline.of(model, ExecutionProfile.here())
    requests = [GenerateRequest(seed=seed, steps=PREVIEW_STEPS) for seed in seeds]
    if inputs.encodings is None:
        loops = list(pipeline.generate(requests))
    else:
        source = validation_split(inputs.dataset) or inputs.dataset
        places = spread_places(source, options.preview_count)
        vectors = inputs.encodings.at(source, [places[seed % len(places)] for seed in seeds])
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
