"""Sampling of many requests with one network, in batches of a fixed shape.

Each request has its own seed, number of steps and sampling method.

requests.py   parameters of a request
profile.py    execution profile: batch size, precision and device
network.py    one call of the network, in a fixed shape
denoising.py  trajectory of one item from noise to image
inversion.py  trajectory of one item from image to noise
sampler.py    batching of many trajectories into network calls
"""

from audiodiff_core.diffusion.schedulers import MAX_STEPS, scheduler_for
from audiodiff_core.models import image_sides
from audiodiff_core.sampling.denoising import Item, initial_noise
from audiodiff_core.sampling.profile import DEFAULT_BATCH_SIZES, ExecutionProfile, Precision
from audiodiff_core.sampling.requests import GenerateRequest, SamplingParameters
from audiodiff_core.sampling.sampler import Sampler

__all__ = [
    "DEFAULT_BATCH_SIZES",
    "MAX_STEPS",
    "ExecutionProfile",
    "GenerateRequest",
    "Item",
    "Precision",
    "Sampler",
    "SamplingParameters",
    "image_sides",
    "initial_noise",
    "scheduler_for",
]
