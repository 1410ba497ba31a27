"""Cut audio into slices, and write a dataset of their mel spectrograms as images.

    python jobs/prepare.py --input_dir MUSIC --output_dir DATASET --resolution 64 --hop_length 1024

The dataset consists of Parquet files, and `datasets.load_dataset` reads it. A second run of the same command continues
from the finished shards, and adds shards for new files of the input.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.prepare.job import PrepareOptions, prepare

if __name__ == "__main__":
    sys.exit(run("prepare", PrepareOptions, prepare, __doc__ or ""))
