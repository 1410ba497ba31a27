"""Compare generated audio with real audio.

    python jobs/evaluate.py --reference DATASET --candidate LOOPS
    python jobs/evaluate.py --reference MUSIC --candidate LOOPS --model RUN/model --output_dir REPORT

The figures are Fréchet distance, kernel distance, density, coverage, and the nearness of generated audio to
training audio. Distances are between features; 0 means identical. Distances of small sets are large because of
their size alone, so all sample sizes are reported (n_...). The Fréchet distance is computed from all items. All
other figures are computed from samples of at most 10,000 items per side, whose sizes are reported as n_paired_... .
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.evaluate.job import evaluate
from audiodiff_platform.evaluate.options import EvaluateOptions

if __name__ == "__main__":
    sys.exit(run("evaluate", EvaluateOptions, evaluate, __doc__ or ""))
