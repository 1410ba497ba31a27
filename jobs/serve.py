"""x"""

import sys

from audiodiff_platform.job import run
from audiodiff_platform.serve import ServeOptions, serve

if __name__ == "__main__":
    sys.exit(run("serve", ServeOptions, serve, __doc__ or ""))
