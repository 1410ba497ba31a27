"""Decoder of untrusted audio files, which decodes in a child process and replaces crashed processes."""

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audiodiff_core.audio import AudioDecodeError, Samples
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.mel.slices import Slicing
from audiodiff_platform.decoder.child import ChildProcess
from audiodiff_platform.decoder.limits import Limits, TimeLimit, spool_of_items, spool_of_slices

MAX_ATTEMPTS = 2
"""Number of processes that try to decode a file before the file counts as unusable."""
MAX_FILES_PER_PROCESS = 1_000
"""Number of files after which a process is replaced, so that memory leaks of libraries stay small."""


@dataclass(frozen=True)
class SlicedFile:
    """The slices of an audio file. Iterating yields each slice and its PNG.

    Args:
        spool: The file with the concatenated PNGs.
        slices: The `index`, `start_s`, `duration_s` and `reference_db` of each slice, the size of its PNG in bytes as
            `bytes`, and its measured `features` by name, or none.
    """

    spool: Path
    slices: list[dict[str, Any]]

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        with self.spool.open("rb") as file:
            for piece in self.slices:
                yield piece, file.read(piece["bytes"])


class Decoder:
    """Decodes untrusted audio files in a child process.

    Results pass through a spool file, so that the slices of a file need not fit into memory. A file that is damaged
    near its end yields no slices at all. The child process ends together with its worker.

    Each method raises AudioDecodeError for a file that is unusable or exceeds `limits`. If a process exceeds the time
    limit while it is working, the file is unusable at once. If a process crashes, exceeds the memory limit, or exceeds
    the time limit while it is waiting, the file is tried again, MAX_ATTEMPTS times in all.

    Args:
        limits: The limits of each file; default: `Limits()`.

    Raises:
        OSError: Raised by the methods if the storage of the audio file or the spool file fails, or if child processes
            end before they are ready.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._process = ChildProcess(self._limits.memory_bytes)
        self._files = 0

    def close(self) -> None:
        """End the child process."""
        self._process.end()

    def slices(
        self, name: str, local: Path, spool: Path, mel: MelConfig, slicing: Slicing, *, measured: bool = False
    ) -> SlicedFile:
        """Cut an audio file into slices.

        Args:
            name: The name of the audio file in error messages.
            local: The audio file.
            spool: The file to which the PNGs are written.
            mel: The mel configuration of the images.
            slicing: The options of slicing.
            measured: Whether to measure the features of the slices.

        Raises:
            AudioDecodeError: The audio file is unusable or silent.
        """
        size = local.stat().st_size
        spool_bytes = spool_of_slices(self._limits.largest_audio(size), mel, slicing)
        request = {
            "kind": "slices",
            **_files(local, spool, spool_bytes),
            "mel": mel.model_dump(),
            "slicing": slicing.model_dump(),
            "measured": measured,
        }
        return SlicedFile(spool, self._result(name, self._limits.time(size, mel, slicing), request))

    def items(
        self, name: str, local: Path, spool: Path, mel: MelConfig, *, with_samples: bool
    ) -> Iterator[tuple[Images, Samples | None]]:
        """Decode an audio file to the images and samples of its slices, with the default options of slicing.

        Args:
            name: The name of the audio file in error messages.
            local: The audio file.
            spool: The file that holds the result until the iterator is exhausted.
            mel: The mel configuration of the images.
            with_samples: Whether to return samples too.

        Returns:
            An iterator over the image (y_res, x_res) of each slice, and its samples (n,) or None.

        Raises:
            AudioDecodeError: The audio file is unusable.
        """
        size = local.stat().st_size
        spool_bytes = spool_of_items(self._limits.largest_audio(size), mel)
        request = {
            "kind": "items",
            **_files(local, spool, spool_bytes),
            "mel": mel.model_dump(),
            "with_samples": with_samples,
        }
        return _read_items(spool, mel, self._result(name, self._limits.time(size, mel), request), with_samples)

    def slice(self, name: str, local: Path, spool: Path, mel: MelConfig, index: int) -> Samples:
        """Decode an audio file up to the end of a slice, and return the samples of the slice as mono float32 (n,).

        Args:
            name: The name of the audio file in error messages.
            local: The audio file.
            spool: A temporary file, removed at the end.
            mel: The mel configuration, which defines the size of a slice.
            index: The index of the slice.

        Raises:
            AudioDecodeError: The audio file is unusable, or has no such slice.
        """
        spool_bytes = mel.slice_size * np.dtype(np.float32).itemsize
        request = {"kind": "slice", **_files(local, spool, spool_bytes), "mel": mel.model_dump(), "index": index}
        return _read_samples(spool, self._result(name, self._limits.time(local.stat().st_size), request))

    def samples(self, name: str, local: Path, spool: Path, sample_rate: int, longest_s: float) -> Samples:
        """Decode a complete audio file to mono float32 samples (n,).

        Args:
            name: The name of the audio file in error messages.
            local: The audio file.
            spool: A temporary file, removed at the end.
            sample_rate: The sample rate of the result in Hz.
            longest_s: The maximum duration in seconds.

        Raises:
            AudioDecodeError: The audio file is unusable, silent or longer than `longest_s`.
        """
        spool_bytes = math.ceil(longest_s * sample_rate) * np.dtype(np.float32).itemsize
        request = {
            "kind": "samples",
            **_files(local, spool, spool_bytes),
            "sample_rate": sample_rate,
            "longest_s": longest_s,
        }
        return _read_samples(spool, self._result(name, self._limits.time(local.stat().st_size), request))

    def _result(self, name: str, limit: TimeLimit, request: dict[str, Any]) -> Any:
        """Add the limits to a request for the file `name`, send the request and return its result."""
        request = {
            **request,
            "audio_bytes": self._limits.largest_audio(limit.size),
            "memory_bytes": self._limits.memory_of(limit.size),
            "time": asdict(limit),
        }
        if self._files >= MAX_FILES_PER_PROCESS:
            self._replace()
        self._files += 1
        outcome = self._outcome(name, limit, request)
        for _ in range(MAX_ATTEMPTS - 1):
            if isinstance(outcome, Exception):
                outcome = self._outcome(name, limit, request)
        if isinstance(outcome, Exception):
            raise outcome
        if "unusable" in outcome:
            raise AudioDecodeError(name, outcome["unusable"])
        if "machine" in outcome:
            number, file = outcome["machine"]
            raise OSError(number, os.strerror(number), file)
        return outcome["result"]

    def _outcome(self, name: str, limit: TimeLimit, request: dict[str, Any]) -> dict[str, Any] | Exception:
        """Return the answer to a request, or the error to raise if this attempt is the last.

        Raise AudioDecodeError at once if the process exceeded the time limit while it was working.
        """
        try:
            answer = self._process.answer(request, limit)
        except TimeoutError as error:
            was_at_work = self._process.was_at_work
            self._replace()
            if was_at_work:
                raise AudioDecodeError(name, str(error)) from error
            return AudioDecodeError(name, str(error))
        if answer is None:
            was_ready, ending = self._process.is_ready, self._replace()
            if was_ready:
                return AudioDecodeError(name, f"ended {MAX_ATTEMPTS} decoder processes ({ending})")
            return ChildProcessError(f"{MAX_ATTEMPTS} decoder processes ended before they were ready ({ending})")
        if "memory" in answer:
            self._replace()
            return AudioDecodeError(name, "needs more memory than the limit for a file of its size")
        return answer

    def _replace(self) -> str:
        """Start a new process; return how the old process ended."""
        ending = self._process.end()
        self._process = ChildProcess(self._limits.memory_bytes)
        self._files = 0
        return ending


def _files(local: Path, spool: Path, spool_bytes: int) -> dict[str, Any]:
    return {"file": str(local), "spool": str(spool), "spool_bytes": spool_bytes}


def _read_samples(spool: Path, count: int) -> Samples:
    """Read and remove a spool file of `count` samples."""
    samples: Samples = np.fromfile(spool, np.float32, count)
    spool.unlink()
    return samples


def _read_items(
    spool: Path, mel: MelConfig, counts: list[int], with_samples: bool
) -> Iterator[tuple[Images, Samples | None]]:
    """Yield the images (y_res, x_res) and samples (n,) in a spool file. `counts` holds n for each slice."""
    with spool.open("rb") as file:
        for count in counts:
            image = np.fromfile(file, np.uint8, mel.y_res * mel.x_res).reshape(mel.y_res, mel.x_res)
            yield image, np.fromfile(file, np.float32, count) if with_samples else None
