"""Generate loops with a model, as audio files and a manifest. The same seed always gives the same bytes.

    python jobs/generate.py --model RUN/model --output_dir LOOPS --count 100

A second run of the same command continues from the finished shards.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions

if __name__ == "__main__":
    sys.exit(run("generate", GenerateOptions, generate, __doc__ or ""))
