"""Sampling of many requests with one network, in batches of a fixed shape.

Each request has its own seed, number of steps and sampling method.

parameters.py   sampling parameters of a request
requests.py     requests: everything that shapes a result
conditions.py   fields of requests that state audio or text to embed
batch_sizes.py  defaults of the execution profile
profile.py      execution profile: batch size, precision and device
item.py         an item to sample: a request and its tensors
network.py      one call of the network, in a fixed shape
inversion.py    coefficients of the way from an image to noise
pool.py         samples of one shape, stepped together
batch.py        batch engine: items join, leave and finish between network calls
sampler.py      loops over the batch engine

`__init__.pyi` lists the public names. Each name is imported on first use, so requests need neither torch nor diffusers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
