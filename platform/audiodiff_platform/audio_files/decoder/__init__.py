"""Audio files from outside are decoded in a process of their own, which is confined: what a file does to it costs the file alone.

1. A worker has a `Decoder` (`decoder`) and asks it for the slices, samples or items of a file.
2. `limits` says how much time, memory and output a file may take.
3. The process (`process`) confines itself (`sandbox`), decodes a file at a time, and writes what it gives into a spool file.

The package imports neither Ray nor Arrow, since the process imports it.
"""

from audiodiff_platform.audio_files.decoder.decoder import Decoder, SlicedFile
from audiodiff_platform.audio_files.decoder.limits import Limits

__all__ = ["Decoder", "Limits", "SlicedFile"]
