"""Compute embeddings of audio for conditional models, or latents of mel images for latent models.

    python jobs/encode.py --input_dir MUSIC --encoder teticio/audio-encoder --output_dir ENCODINGS
    python jobs/encode.py --dataset_name DATASET --latents --vae VAE/model --output_dir LATENTS

A second run of the same command continues from the finished shards.
"""

import sys

from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.entry.run_verb import run

if __name__ == "__main__":
    sys.exit(run("encode", EncodeOptions, encode, __doc__ or ""))
