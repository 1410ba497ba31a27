"""Generation of loops with a trained model, from requests, sources, masks and encodings.

geometry.py       image and sample sizes of a model
sources.py        audio and images to start from, and masks of the kept part
conditions.py     embedding of audio and text by the encoder of a model
inputs.py         validation of the caller's arguments
interpolation.py  interpolation between noises
windows.py        overlapping windows over a long image
loop.py           the result and its file
tasks.py          what a request needs from the sampler
codec.py          conversion between mel images and samples
task_batch.py     tasks in progress in one batch
running.py        running of the tasks of a call
session.py        running of tasks that the caller drives step by step
rendering.py      conversion of results to loops: decoding and vocoder
request_check.py  check of requests without the weights of a model
array_calls.py    calls with arrays instead of references
loop_pipeline.py  LoopPipeline
"""

from audiodiff_core.pipeline.geometry import Geometry
from audiodiff_core.pipeline.inputs import References
from audiodiff_core.pipeline.interpolation import chain, slerp
from audiodiff_core.pipeline.loop import PEAK, Failure, Loop, normalize
from audiodiff_core.pipeline.loop_pipeline import LoopPipeline, load_pipeline
from audiodiff_core.pipeline.request_check import RequestCheck
from audiodiff_core.pipeline.session import Session
from audiodiff_core.pipeline.sources import Audio, AudioFiles, Source, Span
from audiodiff_core.pipeline.task_batch import Step

__all__ = [
    "PEAK",
    "Audio",
    "AudioFiles",
    "Failure",
    "Geometry",
    "Loop",
    "LoopPipeline",
    "References",
    "RequestCheck",
    "Session",
    "Source",
    "Span",
    "Step",
    "chain",
    "load_pipeline",
    "normalize",
    "slerp",
]
