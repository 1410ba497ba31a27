"""Sources of requests, decoded in a confined process."""

from collections.abc import Callable
from pathlib import Path

from audiodiff_core.audio import AudioDecodeError, Samples
from audiodiff_core.mel import MelConfig
from audiodiff_platform.audio_files import Source, source_sha256
from audiodiff_platform.audio_files.source_files import SourceFiles, locate, special_version
from audiodiff_platform.decoder import Decoder
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.scratch import scratch_folder


class DecodedFiles:
    """Files that a confined process decodes, as `AudioFiles` of a pipeline.

    The process starts at the first file. A file that is missing, unreadable or damaged raises AudioDecodeError. Failing
    storage raises OSError.

    Attributes:
        digests: SHA-256 of each file that was decoded, as it was the last time.
    """

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self._digested: dict[str, Source] = {}
        self._files = SourceFiles(Folder("/"))
        self._decoder: Decoder | None = None

    def slice(self, file: str, index: int, mel: MelConfig) -> Samples:
        """Return the samples of a slice. See `AudioFiles.slice`."""
        return self._decoded(file, lambda decoder, local, spool: decoder.slice(file, local, spool, mel, index))

    def track(self, file: str, sample_rate: int, longest_s: float) -> Samples:
        """Return all samples of a file. See `AudioFiles.track`."""
        return self._decoded(
            file, lambda decoder, local, spool: decoder.samples(file, local, spool, sample_rate, longest_s)
        )

    def _decoded(self, file: str, decode: Callable[[Decoder, Path, Path], Samples]) -> Samples:
        if self._decoder is None:
            self._decoder = Decoder()
        folder, name = locate(file)
        try:
            entry = folder.entry(name)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise AudioDecodeError(file, "no such file") from error
        except PermissionError as error:
            raise AudioDecodeError(file, f"cannot be opened ({error.strerror or error})") from error
        source = Source(file, entry.size, special_version(folder, entry) or entry.version)
        with scratch_folder() as scratch:
            local = self._files.fetch(source, scratch)
            if self._digested.get(file) != source:
                self.digests[file], self._digested[file] = source_sha256(source, local), source
            return decode(self._decoder, local, scratch / "samples")
