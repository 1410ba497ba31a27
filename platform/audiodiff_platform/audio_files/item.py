"""One audio file to read."""

from dataclasses import dataclass
from pathlib import Path

from audiodiff_core.audio import AudioDecodeError


@dataclass(frozen=True)
class AudioItem:
    """An audio file, or the reason why it cannot be read.

    Args:
        name: The name of the audio file in the dataset.
        file: The local file that holds the audio, or None if it cannot be read.
        reason: The reason why `file` is None.
    """

    name: str
    file: Path | None
    reason: str = ""

    @property
    def local(self) -> Path:
        """The local file.

        Raises:
            AudioDecodeError: The audio file cannot be read.
        """
        if self.file is None:
            raise AudioDecodeError(self.name, self.reason)
        return self.file

    @property
    def size(self) -> int:
        """The size of the local file in bytes; 0 if the audio file cannot be read."""
        return self.file.stat().st_size if self.file else 0
