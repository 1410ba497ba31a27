"""Files are decoded and sliced in a process of their own: one that crashes it, or exhausts its memory, costs itself alone.

A `Slicer` lives in a worker and gives its process a file at a time, a line of JSON each way; images go through a spool file, so that
no file's slices need fit in memory, and none are used of a file that turns out bad at its end. The process limits its own memory and
ends with its worker. A file that ends two processes in turn is unusable; a worker that is killed takes its process along, which
blames no file.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from audiodiff_core.audio import AudioDecodeError
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.png import encode_png
from audiodiff_core.slices import SILENT, MelSlice, Slicing, mel_slices

PROCESSES_LOST_AT_MOST = 2
MEMORY_BYTES = 384 << 20
MEMORY_BYTES_PER_SAMPLE = 64  # of a slice: spectra, power and image of large slices


@dataclass(frozen=True)
class SlicedFile:
    """What a file gave: its slices, and their PNGs, which lie in a spool file."""

    spool: Path
    slices: list[dict[str, Any]]

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Each slice (index, start_s, duration_s, reference_db) and its PNG."""
        with self.spool.open("rb") as file:
            for piece in self.slices:
                yield piece, file.read(piece["bytes"])


class Slicer:
    """Slices files by one configuration, in a process that is replaced when a file ends it."""

    def __init__(self, mel: MelConfig, slicing: Slicing) -> None:
        self._arguments = [mel.model_dump_json(), slicing.model_dump_json()]
        self._process = self._started()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def slices(self, name: str, local: Path, spool: Path) -> SlicedFile:
        """The slices of the file `local`, their images in the file `spool`.

        Raises AudioDecodeError (with `name`) where it cannot be used, also where it ends the process that decodes it.
        """
        for _ in range(PROCESSES_LOST_AT_MOST):
            answer = self._ask(local, spool)
            if answer is not None:
                break
            ended = _ending(self._process.wait())
            self._process.communicate()
            self._process = self._started()
        else:
            raise AudioDecodeError(name, f"ended {PROCESSES_LOST_AT_MOST} processes that decoded it ({ended})")
        if "unusable" in answer:
            raise AudioDecodeError(name, answer["unusable"])
        return SlicedFile(spool, answer["slices"])

    def _ask(self, local: Path, spool: Path) -> dict[str, Any] | None:
        """The process's answer, or None where it ended instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([str(local), str(spool)]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None

    def _started(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", __name__, *self._arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def main() -> None:
    """The process: answers each line of standard input, [path, spool path], with a line on what was standard output."""
    config, slicing = MelConfig.model_validate_json(sys.argv[1]), Slicing.model_validate_json(sys.argv[2])
    limit = MEMORY_BYTES + MEMORY_BYTES_PER_SAMPLE * config.slice_size
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes: the job ends this one
    mel = Mel(config)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # a decoder's own prints are no answers
        requests: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=_read, args=(sys.stdin, requests), daemon=True).start()
        while True:
            local, spool = json.loads(requests.get())
            answers.write(json.dumps(_sliced(local, Path(spool), mel, slicing)) + "\n")
            answers.flush()


def _read(lines: IO[str], requests: "SimpleQueue[str]") -> None:
    """Hands requests on; when there can be no more, the worker is gone, and so is the use of this process."""
    for line in lines:
        requests.put(line)
    os._exit(0)


def _sliced(local: str, spool: Path, mel: Mel, slicing: Slicing) -> dict[str, Any]:
    pieces = []
    try:
        with spool.open("wb") as file:
            for piece in mel_slices(local, mel, slicing):
                pieces.append({**_facts(piece), "bytes": file.write(encode_png(piece.image))})
    except AudioDecodeError as error:
        return {"unusable": error.reason}
    except MemoryError:
        return {"unusable": "needs more memory than a file may take"}
    return {"slices": pieces} if pieces else {"unusable": SILENT}


def _facts(piece: MelSlice) -> dict[str, Any]:
    return {"index": piece.index, "start_s": piece.start_s, "duration_s": piece.duration_s, "reference_db": piece.reference_db}


if __name__ == "__main__":
    main()
