"""Cut audio into mel spectrogram images and write them as a Parquet dataset for `datasets.load_dataset`.

    python jobs/prepare.py --input_dir MUSIC --output_dir DATASET --resolution 64 --hop_length 1024

A second run of the same command continues from the finished shards. Files added to the input become new shards.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.prepare.job import PrepareOptions, prepare

if __name__ == "__main__":
    sys.exit(run("prepare", PrepareOptions, prepare, __doc__ or ""))
