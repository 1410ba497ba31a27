"""Run a whole recipe (prepare, train, generate) and write a report with images, audio players and figures.

python jobs/demo.py --recipe jobs/recipes/demo.yaml
"""

import sys

from audiodiff_platform.demo.job import DemoOptions, demo
from audiodiff_platform.entry.run_verb import run

if __name__ == "__main__":
    sys.exit(run("demo", DemoOptions, demo, __doc__ or ""))
