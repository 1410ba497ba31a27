"""One period of the loop that the original's `loop_it` finds in each audio file.

    .venv-original/bin/python tests/benchmarks/original/loop_it.py FOLDER SAMPLE_RATE

Reads every FOLDER/*.npy (mono samples) and writes FOLDER/looped/NAME.npy. Audio without a loop is skipped.
"""

import sys
from pathlib import Path

import numpy as np
from audiodiffusion import AudioDiffusion

folder, sample_rate = Path(sys.argv[1]), int(sys.argv[2])
(folder / "looped").mkdir()
for file in sorted(folder.glob("*.npy")):
    loop = AudioDiffusion.loop_it(np.load(file), sample_rate, loops=1)
    if loop is not None:
        np.save(folder / "looped" / file.name, loop)
