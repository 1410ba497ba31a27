"""Says how close generated audio is to real audio: Fréchet and kernel distance, density, coverage and nearness to training audio.

    python jobs/evaluate.py --reference DATASET --candidate LOOPS
    python jobs/evaluate.py --reference MUSIC --candidate LOOPS --model RUN/model --output_dir REPORT

Distances are of features: 0 is the same. Sample sizes are always stated; small sets lie far apart for their size alone.
The Fréchet distance is of all items; all else is of samples of at most 10,000 items a side, whose sizes are the n_paired_... .
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.evaluate.job import evaluate
from audiodiff_platform.evaluate.options import EvaluateOptions

if __name__ == "__main__":
    sys.exit(run("evaluate", EvaluateOptions, evaluate, __doc__ or ""))
