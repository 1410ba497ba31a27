"""Trains an autoencoder of mel images on a mel dataset, for latent diffusion; the finished one lies in OUTPUT_DIR/model.

    python jobs/train_vae.py --dataset_name DATASET --output_dir RUN --max_train_minutes 60

Run again, it goes on from the last checkpoint; with a later stopping point, a finished run is trained further.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.train.autoencoder import train_vae
from audiodiff_platform.train.options import TrainVaeOptions

if __name__ == "__main__":
    sys.exit(run("train_vae", TrainVaeOptions, train_vae, __doc__ or ""))
