"""Generates loops from a model: audio files and a manifest. The seed names the loop: the same seed, the same bytes.

    python jobs/generate.py --model RUN/model --output_dir LOOPS --count 100

Run again, it goes on from the finished shards.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions

if __name__ == "__main__":
    sys.exit(run("generate", GenerateOptions, generate, __doc__ or ""))
