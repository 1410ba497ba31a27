"""Many requests through one network, each with its own seed, steps and scheduler, in batches of one fixed shape.

requests.py   what can be asked for
profile.py    how it is computed
network.py    one call of the network, in a fixed shape
walks.py      one item's way from noise to image, or back
sampler.py    the walks of many items, gathered into the network's calls
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
