"""x"""

import sys

from audiodiff_platform.job import run
from audiodiff_platform.train import TrainOptions, train

if __name__ == "__main__":
    sys.exit(run("train", TrainOptions, train, __doc__ or ""))
