"""Decoding of untrusted audio files in a confined child process.

A damaged or malicious file becomes unusable, and does not end its worker or exhaust the memory of the machine.

1. A worker creates a `Decoder` (`decoder`), and requests the slices, samples or items of a file.
2. `limits` computes the time, memory and size of output that the file may use.
3. `child` starts the child process, sends requests to it and enforces the time limit.
4. The child process (`process`) confines itself (`sandbox`), decodes one file at a time and writes the result to a
   spool file.

The package imports neither Ray nor Arrow, because the child process imports it.
"""

from audiodiff_platform.decoder.decoder import Decoder, SlicedFile
from audiodiff_platform.decoder.limits import Limits

__all__ = ["Decoder", "Limits", "SlicedFile"]
