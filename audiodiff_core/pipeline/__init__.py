"""A trained model at work: requests, sources, masks and encodings in, loops out.

geometry.py       the sizes that a model works on
sources.py        audio and images to start from, and what of them is kept
inputs.py         what a caller gives, checked
interpolation.py  ways from one noise to another
windows.py        images longer than the network is asked for at once
loop.py           what comes out, and its file
pipeline.py       AudioDiffusionPipeline
"""

from audiodiff_core.pipeline.geometry import Geometry
from audiodiff_core.pipeline.interpolation import chain, slerp
from audiodiff_core.pipeline.loop import PEAK, Loop, normalise
from audiodiff_core.pipeline.pipeline import AudioDiffusionPipeline
from audiodiff_core.pipeline.sources import Audio, Source, Span

__all__ = [
    "PEAK",
    "Audio",
    "AudioDiffusionPipeline",
    "Geometry",
    "Loop",
    "Source",
    "Span",
    "chain",
    "normalise",
    "slerp",
]
