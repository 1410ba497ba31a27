"""Sampling of many requests with one network, in batches of a fixed shape.

Each request has its own seed, number of steps and sampling method.

requests.py   requests: everything that shapes a result
conditions.py fields of requests that state audio or text to embed
profile.py    execution profile: batch size, precision and device
item.py       an item to sample: a request and its tensors
network.py    one call of the network, in a fixed shape
inversion.py  coefficients of the way from an image to noise
pool.py       samples of one shape, stepped together
batch.py      batch engine: items join, leave and finish between network calls
sampler.py    loops over the batch engine
"""

from audiodiff_core.diffusion.schedulers import MAX_STEPS, scheduler_for
from audiodiff_core.models import image_sides
from audiodiff_core.sampling.batch import Batch
from audiodiff_core.sampling.item import Failed, Finished, Item, Outcome, initial_noise
from audiodiff_core.sampling.profile import ExecutionProfile, Precision, default_batch_size
from audiodiff_core.sampling.requests import REQUEST, GenerateRequest, Request, SamplingParameters, SeededRequest
from audiodiff_core.sampling.sampler import Sampler

__all__ = [
    "MAX_STEPS",
    "REQUEST",
    "Batch",
    "ExecutionProfile",
    "Failed",
    "Finished",
    "GenerateRequest",
    "Item",
    "Outcome",
    "Precision",
    "Request",
    "Sampler",
    "SamplingParameters",
    "SeededRequest",
    "default_batch_size",
    "image_sides",
    "initial_noise",
    "scheduler_for",
]
