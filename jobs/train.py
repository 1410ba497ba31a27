"""Train a diffusion model on a mel dataset.

    python jobs/train.py --dataset_name DATASET --output_dir RUN --max_train_minutes 60

The finished model is written to OUTPUT_DIR/model. A second run of the same command continues from the last checkpoint.
To train a finished model further, run the command with a larger limit, such as --max_train_minutes 120.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import TrainOptions

if __name__ == "__main__":
    sys.exit(run("train", TrainOptions, train, __doc__ or ""))
