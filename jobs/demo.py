"""Generate loops with the shipped model, then prepare, train and generate by a recipe, and write a report (HTML).

    python jobs/demo.py --recipe jobs/recipes/demo.yaml

The report shows the training loss, and images and audio of real and generated loops. A second run of the same command
continues from the finished work.
"""

import sys

from audiodiff_platform.demo.job import DemoOptions, demo
from audiodiff_platform.entry.run_verb import run

if __name__ == "__main__":
    sys.exit(run("demo", DemoOptions, demo, __doc__ or ""))
