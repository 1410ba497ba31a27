"""Main program of the child process that decodes audio files.

The process reads one request per line of standard input, as JSON, and writes answers as lines of JSON to standard
output. The first line is `ready`. The answer to a request begins with a line for each header that is read, with the
stated duration in seconds as `stated_s`. The last line of the answer has one of these keys:

- `result`: the result.
- `unusable`: the reason why the file is unusable.
- `machine`: the errno and the file of a system error that is not the fault of the audio file.
- `memory`: the process needed more memory than its limit.
"""

import errno
import json
import math
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

from audiodiff_core.audio import MACHINE_ERRORS, AudioDecodeError, PeakMeter, Samples, UnusableError, stream, too_long
from audiodiff_core.loops.features import SliceMeter
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.mel.png import encode_png
from audiodiff_core.mel.slices import CANCELLED, SILENT, MelSlice, Slicing, mel_slices, silence, slice_of_file
from audiodiff_platform.decoder.limits import (
    CPU_SECONDS_PER_SECOND,
    DECODED_SAMPLE_BYTES,
    MAX_TABLE_BYTES,
    TimeLimit,
)
from audiodiff_platform.decoder.sandbox import allow, confine

SPOOL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Error numbers that the disk of the spool file causes."""

Request = dict[str, Any]
Answer = Callable[[dict[str, Any]], None]


def main() -> None:
    """Answer requests until the worker ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # redirect prints of decoder libraries to standard error
        confine(int(sys.argv[1]), int(sys.argv[1]) + MAX_TABLE_BYTES)
        requests: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=_read, args=(sys.stdin, requests), daemon=True).start()

        def answer(line: dict[str, Any]) -> None:
            answers.write(json.dumps(line) + "\n")
            answers.flush()

        answer({"ready": True})
        while True:
            request = json.loads(requests.get())
            answer(_answered(request, LimitWatch(request, answer)))


def _read(lines: IO[str], requests: "SimpleQueue[str]") -> None:
    """Put requests into the queue. Exit at the end of `lines`, when the worker has ended."""
    for line in lines:
        requests.put(line)
    os._exit(0)


class LimitWatch:
    """A `Watch` that enforces the limits of a request: processor time and size of the decoded audio.

    Args:
        request: The request with its limits.
        answer: The function that sends an answer to the worker.
    """

    def __init__(self, request: Request, answer: Answer) -> None:
        self._time, self._answer = TimeLimit(**request["time"]), answer
        self._spool_bytes, self._audio_bytes, self._memory_bytes = (
            request["spool_bytes"],
            request["audio_bytes"],
            request["memory_bytes"],
        )
        self._decoded = 0
        self._allow(self._time.before_header)

    def opened(self, stated_s: float | None) -> None:
        """Set the limit of processor time from the stated duration, and send the duration to the worker."""
        self._decoded = 0
        self._allow(self._time.seconds(stated_s))
        self._answer({"stated_s": stated_s})

    def decoded(self, block: Samples) -> None:
        """Count the size of a block (channels, n). Raise UnusableError if the decoded audio is too large."""
        self._decoded += DECODED_SAMPLE_BYTES * block.size
        if self._decoded > self._audio_bytes:
            limit, size = self._audio_bytes / 1e6, self._time.size / 1e6
            raise UnusableError(
                f"expands to more than {limit:,.1f} MB of audio, the limit for a file of {size:,.3f} MB"
            )

    def _allow(self, seconds: float) -> None:
        allow(math.ceil(CPU_SECONDS_PER_SECOND * seconds), self._spool_bytes, self._memory_bytes)


def _answered(request: Request, watch: LimitWatch) -> dict[str, Any]:
    """Return the last line of the answer to a request."""
    try:
        return {"result": _KINDS[request["kind"]](request, watch)}
    except AudioDecodeError as error:
        return {"memory": True} if _is_out_of_memory(error) else {"unusable": error.reason}
    except MemoryError:
        return {"memory": True}
    except OSError as error:
        if error.errno in SPOOL_ERRORS or error.filename == request["spool"]:
            return {"machine": [error.errno, request["spool"]]}
        if error.errno in MACHINE_ERRORS:
            return {"machine": [error.errno, request["file"]]}
        raise


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Return True if an error, or one of its causes, means that a decoder ran out of memory.

    Causes are decoders that leak memory, and files that state absurd sizes.
    """
    return error is not None and (getattr(error, "errno", None) == errno.ENOMEM or _is_out_of_memory(error.__cause__))


def _slices(request: Request, watch: LimitWatch) -> list[dict[str, Any]]:
    """Write the PNG of each slice to the spool file; return the metadata, features and PNG size of each slice."""
    mel, slicing = _mel(json.dumps(request["mel"])), Slicing.model_validate(request["slicing"])
    meter = SliceMeter(mel.config.sample_rate) if request["measured"] else None
    with Path(request["spool"]).open("wb") as file:
        pieces = [
            {
                **_metadata(piece),
                "bytes": file.write(encode_png(piece.image)),
                "features": {} if meter is None else asdict(meter.features(piece.samples, piece.start_s)),
            }
            for piece in mel_slices(request["file"], mel, slicing, watch)
        ]
    if not pieces:
        raise AudioDecodeError(request["file"], SILENT)
    return pieces


def _metadata(piece: MelSlice) -> dict[str, Any]:
    return {
        "index": piece.index,
        "start_s": piece.start_s,
        "duration_s": piece.duration_s,
        "reference_db": piece.reference_db,
    }


def _items(request: Request, watch: LimitWatch) -> list[int]:
    """Write the image of each slice and, if requested, its samples; return the numbers of samples."""
    mel, counts = _mel(json.dumps(request["mel"])), []
    with Path(request["spool"]).open("wb") as file:
        for piece in mel_slices(request["file"], mel, watch=watch):
            file.write(piece.image.tobytes())
            if request["with_samples"]:
                file.write(piece.samples.tobytes())
            counts.append(len(piece.samples) if request["with_samples"] else 0)
    return counts


def _slice(request: Request, watch: LimitWatch) -> int:
    """Write the samples of a slice as mono float32; return their number."""
    mel = _mel(json.dumps(request["mel"]))
    try:
        samples = slice_of_file(request["file"], request["index"], mel, watch)
    except AudioDecodeError:
        raise
    except ValueError as error:  # the file has no such slice
        raise AudioDecodeError(request["file"], str(error)) from error
    samples.tofile(request["spool"])
    return len(samples)


def _samples(request: Request, watch: LimitWatch) -> int:
    """Write the complete audio file as mono float32 samples; return their number."""
    name, rate, longest_s = request["file"], request["sample_rate"], request["longest_s"]
    meter, count, peak = PeakMeter(), 0, 0.0
    with Path(request["spool"]).open("wb") as file:
        for block in stream(name, rate, meter, watch):
            count += len(block)
            if count > longest_s * rate:
                raise too_long(name, count / rate, longest_s)
            file.write(block.tobytes())
            peak = max(peak, float(np.abs(block).max(initial=0)))
    is_silent, is_cancelled = silence(0, count, peak, rate, meter)
    if is_silent:
        raise AudioDecodeError(name, CANCELLED if is_cancelled else SILENT)
    return count


@lru_cache(maxsize=8)
def _mel(config: str) -> Mel:
    return Mel(MelConfig.model_validate_json(config))


_KINDS: dict[str, Callable[[Request, LimitWatch], Any]] = {
    "slices": _slices,
    "items": _items,
    "slice": _slice,
    "samples": _samples,
}

if __name__ == "__main__":
    main()
