"""Uploaded audio files, decoded in a confined process before their request joins the batch."""

import threading
from collections.abc import Mapping

from audiodiff_core.audio import Samples
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import Geometry
from audiodiff_core.pipeline.sources import MAX_TRACK_COLUMNS
from audiodiff_core.sampling.requests import RemixRequest, Request
from audiodiff_platform.decoder import Decoder
from audiodiff_platform.storage.scratch import scratch_folder


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
    """Decoder of uploads. One confined process decodes one upload at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoder: Decoder | None = None

    def decode(self, request: Request, uploads: Mapping[str, bytes], geometry: Geometry) -> dict[str, Samples]:
        """Decode what a resolved request takes from each upload.

        Args:
            request: The request.
            uploads: Contents of the files by reference.
            geometry: The geometry of the model.

        Raises:
            AudioDecodeError: If an upload cannot be decoded, or has no such slice. It names the reference.
            OSError: If the scratch folder cannot be written.
        """
        return {name: self._samples(name, content, request, geometry) for name, content in uploads.items()}

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._decoder is not None:
                self._decoder.close()

    def _samples(self, name: str, content: bytes, request: Request, geometry: Geometry) -> Samples:
        mel = geometry.mel
        with self._lock, scratch_folder() as scratch:
            if self._decoder is None:
                self._decoder = Decoder()
            local, spool = scratch / "upload", scratch / "samples"
            local.write_bytes(content)
            if isinstance(request, RemixRequest):
                longest_s = MAX_TRACK_COLUMNS * mel.hop_length / mel.sample_rate
                return self._decoder.samples(name, local, spool, mel.sample_rate, longest_s)
            of_width = mel.model_copy(update={"x_res": geometry.width(request)})
            return self._decoder.slice(name, local, spool, of_width, getattr(request, "slice", 0))
