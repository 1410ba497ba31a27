"""Mel-spectrogram diffusion on one device: audio, mel images, networks, training, sampling.

    from audiodiff_core import GenerateRequest, load_pipeline

    pipeline = load_pipeline("runs/demo/train/model")
    for loop in pipeline.generate([GenerateRequest(seed=seed) for seed in range(8)]):
        ...  # loop.audio: float32 (n,) at pipeline.mel.sample_rate, loop.image: uint8 (y_res, width)

`__init__.pyi` lists the public names. Each name is imported on first use, so decoding audio does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
