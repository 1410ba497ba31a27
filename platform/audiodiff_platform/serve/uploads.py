"""Uploaded audio files, decoded in a confined process before their request joins the batch."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from audiodiff_core.audio import Samples
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import Geometry
from audiodiff_core.pipeline.sources import MAX_TRACK_COLUMNS
from audiodiff_core.sampling.requests import RemixRequest, Request
from audiodiff_platform.decoder import Decoder, Limits
from audiodiff_platform.storage.scratch import scratch_folder

PROCESSES = 2
"""Processes that decode uploads of a replica, so that a slow file does not hold up the others."""


class DecodedUploads:
    """Samples of the uploads of one request by reference, as `AudioFiles` of a session."""

    def __init__(self) -> None:
        self.samples: dict[str, Samples] = {}

    def slice(self, file: str, _index: int, _mel: MelConfig) -> Samples:
        """Return the samples of the slice of the request."""
        return self.samples[file]

    def track(self, file: str, _sample_rate: int, _longest_s: float) -> Samples:
        """Return all samples."""
        return self.samples[file]


class UploadDecoder:
    """Decoder of uploads, in confined processes.

    Args:
        seconds: Time for a file of size zero. The limit grows with the duration of the audio.
        longest_track_s: Longest track of a remix in seconds.
    """

    def __init__(self, seconds: float, longest_track_s: float) -> None:
        self._longest_track_s = longest_track_s
        self._limits = Limits(base_s=seconds)
        self._threads = ThreadPoolExecutor(PROCESSES, "decode")
        self._local = threading.local()

    async def decode(self, request: Request, uploads: Mapping[str, bytes], geometry: Geometry) -> dict[str, Samples]:
        """Decode what a resolved request takes from each upload.

        Args:
            request: The request.
            uploads: Contents of the files by reference.
            geometry: The geometry of the model.

        Raises:
            AudioDecodeError: If an upload cannot be decoded, or has no such slice. It names the reference.
            OSError: If the scratch folder cannot be written.
        """
        decode = partial(self._samples, request, geometry)
        loop = asyncio.get_running_loop()
        return {name: await loop.run_in_executor(self._threads, decode, name, uploads[name]) for name in uploads}

    async def whole(self, content: bytes, sample_rate: int, longest_s: float) -> Samples:
        """Decode a whole file.

        Args:
            content: Content of the file.
            sample_rate: Sample rate of the result in Hz.
            longest_s: Longest duration in seconds.

        Raises:
            AudioDecodeError: If the file cannot be decoded, or is longer.
            OSError: If the scratch folder cannot be written.
        """

        def take(decoder: Decoder, local: Path, spool: Path) -> Samples:
            return decoder.samples("audio", local, spool, sample_rate, longest_s)

        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decoded, content, take)

    def _samples(self, request: Request, geometry: Geometry, name: str, content: bytes) -> Samples:
        mel = geometry.mel

        def take(decoder: Decoder, local: Path, spool: Path) -> Samples:
            if isinstance(request, RemixRequest):
                longest_s = min(self._longest_track_s, MAX_TRACK_COLUMNS * mel.hop_length / mel.sample_rate)
                return decoder.samples(name, local, spool, mel.sample_rate, longest_s)
            of_width = mel.model_copy(update={"x_res": geometry.width(request)})
            return decoder.slice(name, local, spool, of_width, getattr(request, "slice", 0))

        return self._decoded(content, take)

    def _decoded(self, content: bytes, take: Callable[[Decoder, Path, Path], Samples]) -> Samples:
        """Call a function with the decoder of this thread, the file, and the path of its spool file."""
        if not hasattr(self._local, "decoder"):
            self._local.decoder = Decoder(self._limits)
        with scratch_folder() as scratch:
            local = scratch / "upload"
            local.write_bytes(content)
            return take(self._local.decoder, local, scratch / "samples")
