"""Says how close generated audio is to real audio: Fréchet and kernel distance, density, coverage and nearness to training audio.

    python jobs/evaluate.py --reference DATASET --candidate LOOPS
    python jobs/evaluate.py --reference MUSIC --candidate LOOPS --model RUN/model --output_dir REPORT

Distances are of features: 0 is the same. Sample sizes are always stated; small sets lie far apart for their size alone.
"""

import sys

from audiodiff_platform.evaluate import EvaluateOptions, evaluate
from audiodiff_platform.job import run

if __name__ == "__main__":
    sys.exit(run("evaluate", EvaluateOptions, evaluate, __doc__ or ""))
