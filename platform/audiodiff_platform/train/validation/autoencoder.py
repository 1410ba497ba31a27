"""Validation of the checkpoints of autoencoder training, with the averaged weights.

OUTPUT_DIR/validation/<step>.json    mean absolute difference between the held-out images and their reconstructions
OUTPUT_DIR/tensorboard/validation/   the same value, and pictures of images above their reconstructions
"""

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
    vae.to(device)
    split = validation_split(dataset)
    source = split or dataset
    places = spread_places(source, PICTURES if split is None else MAX_ROWS)
    images = np.stack([source.image(*place) for place in places])
    reconstructions = np.concatenate(
        [_reconstructed(vae, images[first : first + BATCH_SIZE]) for first in range(0, len(images), BATCH_SIZE)]
    )
    metrics = {}
    if split is not None:
        levels = float(np.abs(images.astype(int) - reconstructions).mean())
        metrics["validation_loss"] = levels * 2 / IMAGE_MAX
        say(f"step {step_of(name)}: mean absolute error of held-out images: {levels:.2f} of {IMAGE_MAX} gray levels")
    output.write_json(f"{FOLDER}/{step_of(name)}.json", metrics)
    if "tensorboard" in train_options.report_to:
        board = TensorBoardFolder(output, FOLDER)
        _write_board(board, step_of(name), metrics, images[:PICTURES], reconstructions[:PICTURES])
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
