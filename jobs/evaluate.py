"""Compare generated audio with real audio.

    python jobs/evaluate.py --reference DATASET --candidate LOOPS
    python jobs/evaluate.py --reference MUSIC --candidate LOOPS --model RUN/model --output_dir REPORT

The results are the Fréchet distance, the kernel distance, density, coverage, and the nearness of generated audio to
training audio, which reveals copies. The distances compare the features of two sets of audio slices. A distance near 0
means similar sets. Small sets have large Fréchet distances even if they sound alike, so compare only results of sets of
similar size.

The Fréchet distance uses all slices; n_candidate and n_reference are their numbers. The other results use a sample of
at most 10,000 slices of each side; n_paired_candidate and n_paired_reference are the sizes of the samples.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.evaluate.job import evaluate
from audiodiff_platform.evaluate.options import EvaluateOptions

if __name__ == "__main__":
    sys.exit(run("evaluate", EvaluateOptions, evaluate, __doc__ or ""))
