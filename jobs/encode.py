"""Encodes audio to embeddings that a model can be conditioned on, or a mel dataset to latents that a latent model can be trained on.

    python jobs/encode.py --input_dir MUSIC --encoder teticio/audio-encoder --output_dir ENCODINGS
    python jobs/encode.py --dataset_name DATASET --latents --vae VAE/model --output_dir LATENTS

Run again, it goes on from the finished shards.
"""

import sys

from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.entry.run_verb import run

if __name__ == "__main__":
    sys.exit(run("encode", EncodeOptions, encode, __doc__ or ""))
