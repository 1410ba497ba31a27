"""Train an autoencoder of mel images for latent diffusion.

    python jobs/train_vae.py --dataset_name DATASET --output_dir RUN --max_train_minutes 60

The finished model is written to OUTPUT_DIR/model. A second run of the same command continues from the last checkpoint.
To train a finished model further, run the command with a larger limit, such as --max_train_minutes 120.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.train.autoencoder import train_vae
from audiodiff_platform.train.options import TrainVaeOptions

if __name__ == "__main__":
    sys.exit(run("train_vae", TrainVaeOptions, train_vae, __doc__ or ""))
