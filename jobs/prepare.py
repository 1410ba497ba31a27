"""x"""

import sys

from audiodiff_platform.job import run
from audiodiff_platform.prepare import PrepareOptions, prepare

if __name__ == "__main__":
    sys.exit(run("prepare", PrepareOptions, prepare, __doc__ or ""))
