"""Prepare a dataset, train a model, generate loops, and write a report as an HTML page.

    python jobs/demo.py --recipe jobs/recipes/demo.yaml

The report shows the training loss, and images and audio of real and generated loops. A second run of the same command
continues from the finished work.
"""

import sys

from audiodiff_platform.demo.job import DemoOptions, demo
from audiodiff_platform.entry.run_verb import run

if __name__ == "__main__":
    sys.exit(run("demo", DemoOptions, demo, __doc__ or ""))
