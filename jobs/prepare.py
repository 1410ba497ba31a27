"""Cuts audio into mel-spectrogram images and writes them as a dataset: Parquet that `datasets.load_dataset` reads.

    python jobs/prepare.py --input_dir MUSIC --output_dir DATASET --resolution 64 --hop_length 1024

Run again, it goes on from the finished shards; files added to the input become new shards.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.prepare.job import PrepareOptions, prepare

if __name__ == "__main__":
    sys.exit(run("prepare", PrepareOptions, prepare, __doc__ or ""))
