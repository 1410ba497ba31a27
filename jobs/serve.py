"""Serve models over HTTP until Ctrl-C is pressed.

    python jobs/serve.py --model loops=RUN/model

A client requests a loop as follows:

    curl -X POST http://127.0.0.1:8000/v1/generate -H 'Content-Type: application/json' -d '{"seed": 7}' -o loop.wav
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.serve.job import serve
from audiodiff_platform.serve.options import ServeOptions

if __name__ == "__main__":
    sys.exit(run("serve", ServeOptions, serve, __doc__ or ""))
