"""x"""

import sys

from audiodiff_platform.generate import GenerateOptions, generate
from audiodiff_platform.job import run

if __name__ == "__main__":
    sys.exit(run("generate", GenerateOptions, generate, __doc__ or ""))
