"""Rendering of finished tasks as loops: decoding to mel images and synthesis of the audio."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from audiodiff_core.audio import Samples
from audiodiff_core.loops import fit_length
from audiodiff_core.mel import Images
from audiodiff_core.pipeline.codec import Codec
from audiodiff_core.pipeline.geometry import Geometry
from audiodiff_core.pipeline.loop import Failure, Loop, normalize
from audiodiff_core.pipeline.loop_file import Origin
from audiodiff_core.pipeline.tasks import Result
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.sampling.requests import SeededRequest
from audiodiff_core.vocoder import GriffinLim, Kept, Vocoder, kept_samples

NOT_FINITE = "the autoencoder's image is not finite: its weights are broken, use another model"


@dataclass(frozen=True, eq=False)
class Rendering:
    """A result to render.

    Attributes:
        number: Index of the request in the call.
        request: The request, with all defaults filled in.
        result: The result of its task.
    """

    number: int
    request: SeededRequest
    result: Result


class Renderer:
    """Renderer of results as loops.

    Args:
        codec: The codec.
        vocoder: The vocoder.
        geometry: The geometry of the model.
        model_digest: Digest of the model, or None.
    """

    def __init__(self, codec: Codec, vocoder: Vocoder, geometry: Geometry, model_digest: str | None = None) -> None:
        self._codec, self._vocoder, self._geometry = codec, vocoder, geometry
        self._model_digest = model_digest

    def render(self, renderings: Sequence[Rendering], profile: ExecutionProfile) -> Iterator[Loop | Failure]:
        """Yield the loop of each result, or its failure.

        Args:
            renderings: The results.
            profile: The execution profile of the samples.
        """
        images: list[tuple[Rendering, Images]] = []
        for (_, circular), group in groupby(sorted(renderings, key=_shape), key=_shape):
            members = list(group)
            samples = torch.stack([sample for member in members for sample in member.result.samples])
            decoded, finite = self._codec.decode(samples, circular, profile.batch_size)
            first = 0
            for member in members:
                own = slice(first, first + len(member.result.samples))
                first = own.stop
                if finite[own].all():
                    images.append((member, self._image(member.result, decoded[own])))
                else:
                    reason = f"seed {member.request.seed}: {NOT_FINITE}"
                    yield Failure(member.request, member.number, FloatingPointError(reason))
        for (_, circular), pairs in groupby(sorted(images, key=_image_shape), key=_image_shape):
            yield from self._loops(list(pairs), circular, profile)

    def preview(self, sample: torch.Tensor, circular: bool) -> Images:
        """Convert a sample (channels, height, width) to a mel image (y_res, width)."""
        image: Images = self._codec.decode(sample[None], circular)[0][0]
        return image

    def _loops(
        self, pairs: Sequence[tuple[Rendering, Images]], circular: bool, profile: ExecutionProfile
    ) -> Iterator[Loop]:
        """Synthesize the audio of images of one width."""
        images = np.stack([image for _, image in pairs])
        seeds = [member.request.seed for member, _ in pairs]
        kept = [self._kept(member.result, image.shape[1], circular) for member, image in pairs]
        options = {"kept": kept} if any(item is not None for item in kept) else {}
        vocoder = self._vocoder
        if isinstance(vocoder, GriffinLim):
            vocoder = vocoder.with_batch_size(profile.batch_size)
        with profile.applied():
            audios = vocoder(images, seeds, circular=circular, **options)
        for (member, image), audio, item in zip(pairs, audios, kept, strict=True):
            leveled, noise = self._leveled(member, audio, item), member.result.noise
            origin = Origin(self._model_digest, _encoding_digest(member.result))
            yield Loop(member.request, image, leveled, member.number, profile, origin, noise)

    def _leveled(self, member: Rendering, audio: Samples, kept: Kept | None) -> Samples:
        """Fit the audio to its bars, and set its level: that of the kept samples, or else the peak of all loops."""
        samples = self._geometry.samples(member.request)
        if kept is not None:
            source = member.result.source
            assert source is not None
            # A crossfade at the wrap would change the first samples of the source.
            return (audio[:samples] * np.float32(source.amplitude)).astype(np.float32)
        if samples is not None:
            audio = fit_length(audio, samples, self._geometry.mel.sample_rate, member.request.seamless)
        return normalize(audio)

    def _image(self, result: Result, images: Images) -> Images:
        """Join the windows of a result, and put the kept pixels of its source into the image."""
        image = images[0] if result.windows is None else result.windows.join(images, self._geometry.factor)
        if result.columns is not None:
            image = image[:, : result.columns]
        if result.source is not None and result.kept is not None:
            columns = min(image.shape[1], result.kept.shape[1])
            kept, source = result.kept[:, :columns], result.source.image[:, :columns]
            np.copyto(image[:, :columns], source, where=kept)
        return np.ascontiguousarray(image)

    def _kept(self, result: Result, columns: int, circular: bool) -> Kept | None:
        """Return the kept samples of the source, at the scale of the image, or None."""
        source = result.source
        if source is None or source.samples is None or result.kept is None or not source.amplitude:
            return None
        mel = self._geometry.mel
        length = (columns if circular else columns - 1) * mel.hop_length
        whole = np.zeros(columns, np.bool_)
        known = min(columns, result.kept.shape[1])
        whole[:known] = result.kept[:, :known].all(axis=0)
        samples = np.zeros(length, np.float32)
        own = source.samples[:length]
        samples[: len(own)] = own / np.float32(source.amplitude)
        return Kept(samples, kept_samples(whole, mel, length))


def _encoding_digest(result: Result) -> str | None:
    """Return the first 16 hexadecimal digits of the SHA-256 of an encoding, as little-endian float32."""
    encoding = result.item.encoding
    if encoding is None:
        return None
    return hashlib.sha256(encoding.numpy().astype("<f4").tobytes()).hexdigest()[:16]


def _shape(member: Rendering) -> tuple[tuple[int, ...], bool]:
    return tuple(member.result.samples[0].shape), member.request.seamless


def _image_shape(pair: tuple[Rendering, Images]) -> tuple[int, bool]:
    return pair[1].shape[1], pair[0].request.seamless
