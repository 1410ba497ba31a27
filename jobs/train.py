"""Trains a diffusion model on a mel dataset; the finished model lies in OUTPUT_DIR/model.

    python jobs/train.py --dataset_name DATASET --output_dir RUN --max_train_minutes 60

Run again, it goes on from the last checkpoint; with a later stopping point, a finished run is trained further.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import TrainOptions

if __name__ == "__main__":
    sys.exit(run("train", TrainOptions, train, __doc__ or ""))
