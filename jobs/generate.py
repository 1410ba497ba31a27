"""Generate loops with a model, and write audio files and a manifest.

    python jobs/generate.py --model RUN/model --output_dir LOOPS --count 100
    python jobs/generate.py --model RUN/model --output_dir LOOPS --requests requests.jsonl
    python jobs/generate.py --model RUN/model --output_dir LOOPS --input_dir TAKES --strength 0.4
    python jobs/generate.py --model RUN/model --output_dir LOOPS --count 100 --prompt "a slow drum loop"

The same request gives the same bytes on the same kind of device, for any number of workers. A second run of the same
command continues from the finished shards, and adds the loops of new requests.
"""

import sys

from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions

if __name__ == "__main__":
    sys.exit(run("generate", GenerateOptions, generate, __doc__ or ""))
