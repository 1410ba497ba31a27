"""What is made of each checkpoint of an autoencoder's training, beside it, as `validation.py` does of a diffusion training's.

OUTPUT_DIR/validation/<step>.json          mean absolute difference of the held-out tracks' images and their reconstructions
OUTPUT_DIR/tensorboard/validation/         the same, with pictures: an image above its reconstruction
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
from audiodiff_platform.train.inputs import held_out
from audiodiff_platform.train.options import TrainVaeOptions
from audiodiff_platform.train.run_log import TensorBoardFolder

ROWS_AT_MOST = 256
BATCH_SIZE = 8
PICTURES = 4


def validates_vae(options: TrainVaeOptions, dataset: TrainingImages) -> bool:
    """Whether there is anything to be made of a checkpoint: held-out tracks, or pictures for TensorBoard."""
    return held_out(dataset) is not None or "tensorboard" in options.report_to


def validate_vae(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Looks at the averaged weights of the checkpoint `name` of the run folder; gives what it found, which it writes there too."""
    told = TrainVaeOptions.model_validate(options)
    output = Folder(told.output_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = open_dataset(told.dataset_name, told.mel_config, Folder(told.output_dir))
    vae = build_vae(told.preset, dataset.mel).eval()
    try:
        with local_checkpoint(output, name) as (folder, _):
            vae.load_state_dict(load_file(folder / EMA_WEIGHTS))
    except FileNotFoundError:
        say(f"validation: {name} was superseded before its turn")
        return {}
    vae.to(device)
    tracks = held_out(dataset)
    shown = tracks or dataset
    places = spread_places(shown, PICTURES if tracks is None else ROWS_AT_MOST)
    images = np.stack([shown.image(*place) for place in places])
    made = np.concatenate(
        [_reconstructed(vae, images[first : first + BATCH_SIZE]) for first in range(0, len(images), BATCH_SIZE)]
    )
    found = {}
    if tracks is not None:
        levels = float(np.abs(images.astype(int) - made).mean())
        found["validation_loss"] = levels * 2 / IMAGE_MAX
        say(
            f"step {step_of(name)}: held-out images are reconstructed within {levels:.2f} of {IMAGE_MAX} levels on average"
        )
    output.write_json(f"{FOLDER}/{step_of(name)}.json", found)
    if "tensorboard" in told.report_to:
        _show(TensorBoardFolder(output, FOLDER), step_of(name), found, images[:PICTURES], made[:PICTURES])
    return found


@torch.no_grad()
def _reconstructed(vae: Any, images: Images) -> Images:
    """By the means of their latents."""
    means = posterior_moments(vae, images)[:, 0]
    return to_image(vae.decode(means).sample[:, 0].float().cpu().numpy())


def _show(board: TensorBoardFolder, step: int, found: dict[str, float], images: Images, made: Images) -> None:
    """Puts figures and pictures (low bands at the bottom) into TensorBoard's files."""
    for name, value in found.items():
        board.writer.add_scalar(name, value, step)
    for number, pair in enumerate(zip(images, made, strict=True)):
        board.writer.add_image(
            f"image {number}, its reconstruction below",
            np.concatenate([image[::-1] for image in pair]),
            step,
            dataformats="HW",
        )
    board.close()
