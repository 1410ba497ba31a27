"""Generation of loops with a trained model, from requests, sources, masks and encodings.

geometry.py       image and sample sizes of a model
sources.py        audio and images to start from, and masks of the kept part
inputs.py         validation of the caller's arguments
interpolation.py  interpolation between noises
windows.py        overlapping windows over a long image
loop.py           the result and its file
rendering.py      conversion of items to loops: sampling, decoding and vocoder
long_loops.py     sampling of long images, window by window
pipeline.py       AudioDiffusionPipeline
"""

from audiodiff_core.pipeline.geometry import Geometry
from audiodiff_core.pipeline.interpolation import chain, slerp
from audiodiff_core.pipeline.loop import PEAK, Loop, normalize
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
    "normalize",
    "slerp",
]
