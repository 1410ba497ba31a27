"""One audio file, as the jobs read it."""

from dataclasses import dataclass
from pathlib import Path

from audiodiff_core.audio import AudioDecodeError


@dataclass(frozen=True)
class AudioItem:
    """An audio file: its name in the dataset, and the local file that holds it now or the reason why there is none."""

    name: str
    file: Path | None
    reason: str = ""

    @property
    def local(self) -> Path:
        """The local file. Raises AudioDecodeError if there is none."""
        if self.file is None:
            raise AudioDecodeError(self.name, self.reason)
        return self.file

    @property
    def size(self) -> int:
        """Bytes of the local file, 0 if there is none."""
        return self.file.stat().st_size if self.file else 0
