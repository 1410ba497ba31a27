"""Validation of the checkpoints of autoencoder training, with the averaged weights.

OUTPUT_DIR/validation/<step>.json    mean absolute difference between the held-out images and their reconstructions
OUTPUT_DIR/tensorboard/validation/   the same value, and pictures of images above their reconstructions
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from audiodiff_core.latents.posteriors import posterior_moments
from audiodiff_core.mel import IMAGE_MAX, Images, to_image
from audiodiff_core.models import build_vae
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.mel_dataset import TrainingImages
from audiodiff_platform.mel_data.original_datasets import open_dataset
from audiodiff_platform.mel_data.run_folder import EMA_WEIGHTS
from audiodiff_platform.mel_data.run_folder import VALIDATION_RESULTS as FOLDER
from audiodiff_platform.mel_data.sample_order import spread_places
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import local_checkpoint, step_of
from audiodiff_platform.train.inputs import validation_split
from audiodiff_platform.train.options import TrainVaeOptions
from audiodiff_platform.train.run_log import TensorBoardFolder

MAX_ROWS = 256
BATCH_SIZE = 8
PICTURES = 4


def validates_vae(options: TrainVaeOptions, dataset: TrainingImages) -> bool:
    """Return True if checkpoints can be validated: by held-out tracks, or by pictures in TensorBoard."""
    return validation_split(dataset) is not None or "tensorboard" in options.report_to


def validate_vae(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Validate the averaged weights of a checkpoint.

    Args:
        name: Name of the checkpoint in the run folder.
        options: Options of the run as a dictionary.

    Returns:
        The validation metrics, which are also written to the run folder. Empty if the checkpoint was removed.
    """
    train_options = TrainVaeOptions.model_validate(options)
    output = Folder(train_options.output_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = open_dataset(train_options.dataset_name, train_options.mel_config, output)
    vae = build_vae(train_options.preset, dataset.mel).eval()
    try:
        with local_checkpoint(output, name) as (folder, _):
            vae.load_state_dict(load_file(folder / EMA_WEIGHTS))
    except FileNotFoundError:
        say(f"validation of {name} skipped: the checkpoint was removed because newer checkpoints exist")
        return {}
    held_out = reconstruct_held_out(dataset, vae.to(device))
    return write_vae_results(train_options, dataset, step_of(name), held_out)


@dataclass(frozen=True)
class Reconstructions:
    """Held-out images and their reconstructions.

    Args:
        numbers: Numbers of the images.
        images: Images (n, y_res, x_res).
        made: Their reconstructions, of the same shape.
    """

    numbers: list[int]
    images: Images
    made: Images

    @staticmethod
    def joined(parts: Sequence["Reconstructions"]) -> "Reconstructions":
        """Return the images of all parts, in the order of their numbers."""
        numbers = [number for part in parts for number in part.numbers]
        order = np.argsort(numbers)
        images, made = (
            np.concatenate(arrays)[order] for arrays in zip(*((p.images, p.made) for p in parts), strict=True)
        )
        return Reconstructions(sorted(numbers), images, made)


def reconstruct_held_out(dataset: TrainingImages, vae: Any, rank: int = 0, world: int = 1) -> Reconstructions:
    """Reconstruct every `world`-th of the held-out images, from image `rank` on.

    Without held-out tracks, a few training images are reconstructed.

    Args:
        dataset: The dataset of the run.
        vae: The autoencoder, in evaluation mode.
        rank: First image.
        world: Distance between images.
    """
    split = validation_split(dataset)
    source = split or dataset
    places = spread_places(source, PICTURES if split is None else MAX_ROWS)
    numbers = list(range(rank, len(places), world))
    shape = (0, dataset.mel.y_res, dataset.mel.x_res)
    images = np.stack([source.image(*places[number]) for number in numbers]) if numbers else np.empty(shape, np.uint8)
    made = [_reconstructed(vae, images[first : first + BATCH_SIZE]) for first in range(0, len(images), BATCH_SIZE)]
    return Reconstructions(numbers, images, np.concatenate(made) if made else np.empty(shape, np.uint8))


def write_vae_results(
    options: TrainVaeOptions, dataset: TrainingImages, step: int, held_out: Reconstructions
) -> dict[str, Any]:
    """Write the validation metrics and some pictures to the run folder, and return the metrics."""
    output, metrics = Folder(options.output_dir), {}
    if validation_split(dataset) is not None:
        levels = float(np.abs(held_out.images.astype(int) - held_out.made).mean())
        metrics["validation_loss"] = levels * 2 / IMAGE_MAX
        say(f"step {step}: mean absolute error of held-out images: {levels:.2f} of {IMAGE_MAX} gray levels")
    output.write_json(f"{FOLDER}/{step}.json", metrics)
    if "tensorboard" in options.report_to:
        board = TensorBoardFolder(output, FOLDER)
        _write_board(board, step, metrics, held_out.images[:PICTURES], held_out.made[:PICTURES])
    return metrics


@torch.no_grad()
def _reconstructed(vae: Any, images: Images) -> Images:
    """Return the reconstructions from the means of the latents, (batch, y_res, x_res) uint8."""
    means = posterior_moments(vae, torch.from_numpy(images))[:, 0]
    return to_image(vae.decode(means).sample[:, 0].float().cpu().numpy())


def _write_board(
    board: TensorBoardFolder, step: int, metrics: dict[str, float], images: Images, reconstructions: Images
) -> None:
    """Write metrics and pictures to TensorBoard, with the low mel bands at the bottom."""
    for name, value in metrics.items():
        board.writer.add_scalar(name, value, step)
    for number, pair in enumerate(zip(images, reconstructions, strict=True)):
        board.writer.add_image(
            f"image {number}, its reconstruction below",
            np.concatenate([image[::-1] for image in pair]),
            step,
            dataformats="HW",
        )
    board.close()
