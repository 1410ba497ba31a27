"""A trained model at work: requests in, loops out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from audiodiff_core.audio import Samples
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Sampler, image_sides
from audiodiff_core.vocoder import GriffinLim, Vocoder

PEAK = 10 ** (-1 / 20)
"""Loops are given the peak level -1 dBFS: a mel image says nothing of the absolute level."""


@dataclass(frozen=True)
class Loop:
    """What a request became: its mel image (y_res, x_res) and its audio (n,) with peak -1 dBFS."""

    request: GenerateRequest
    image: Images
    audio: Samples


class AudioDiffusionPipeline:
    """Network, noise schedule, mel configuration and vocoder, on one device by one execution profile.

    The original's pipeline held a Mel with the audio of the moment in it; this one holds no state between calls.
    """

    def __init__(self, unet: Any, scheduler: Any, mel: MelConfig, profile: ExecutionProfile, vocoder: Vocoder | None = None) -> None:
        if image_sides(unet) != (mel.y_res, mel.x_res):
            raise ValueError(f"network for images of {image_sides(unet)} (height, width) with a mel of {(mel.y_res, mel.x_res)}")
        self.mel = mel
        self.vocoder = vocoder or GriffinLim(mel, profile.device)
        if self.vocoder.config != mel:
            raise ValueError(f"vocoder does not fit the model's mel: {self.vocoder.config.difference(mel)}")
        self.sampler = Sampler(unet, scheduler, profile)

    @property
    def profile(self) -> ExecutionProfile:
        return self.sampler.profile

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Loop]:
        """Yields a Loop for each request, in the order in which they finish; the same request gives the same bytes in any company."""
        finished = self.sampler.sample(requests)
        while ready := list(islice(finished, self.profile.batch_size)):
            images = np.stack([image for _, image in ready])
            audios = self.vocoder(images, [request.seed for request, _ in ready])
            for (request, image), audio in zip(ready, audios, strict=True):
                yield Loop(request, image, normalise(audio))


def normalise(audio: Samples) -> Samples:
    """`audio` scaled to the peak level -1 dBFS; silence stays silence."""
    peak = float(np.abs(audio).max(initial=0))
    return audio if peak == 0 else (audio * np.float32(PEAK / peak)).astype(np.float32)
