"""Decoding of untrusted audio files in a confined child process.

A malicious file can make only itself unusable.

1. A worker has a `Decoder` (`decoder`) and requests the slices, samples or items of a file.
2. `limits` computes the time, memory and output that a file may use.
3. `child` starts the child process, sends requests to it and enforces the time limit.
4. The child process (`process`) confines itself (`sandbox`), decodes one file at a time and writes the result to a
   spool file.

The package imports neither Ray nor Arrow, because the child process imports it.
"""

from audiodiff_platform.decoder.decoder import Decoder, SlicedFile
from audiodiff_platform.decoder.limits import Limits

__all__ = ["Decoder", "Limits", "SlicedFile"]
