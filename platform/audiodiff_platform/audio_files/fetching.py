"""Sources as local files, some of them fetched ahead, with a bound on the disk that they take."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from audiodiff_platform.audio_files.inputs import Inputs
from audiodiff_platform.audio_files.source import Source

FETCHED_AHEAD = 2
SCRATCH_BYTES = 1 << 30  # of a worker; a node has a worker for each core


def fetched(inputs: Inputs, sources: Iterable[Source], scratch: Path) -> Iterator[tuple[Source, "Future[Path]"]]:
    """Each source with its local file, which is removed from `scratch` when the next source is asked for.

    The next sources are on their way meanwhile, at most FETCHED_AHEAD. What is in `scratch` and on its way there has at
    most SCRATCH_BYTES, or is one larger source.
    """
    remaining = iter(sources)
    following = next(remaining, None)
    ahead: deque[tuple[Source, Future[Path]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(1)
    try:
        while following is not None or ahead:
            while following and len(ahead) <= FETCHED_AHEAD and (not held or held + following.bytes <= SCRATCH_BYTES):
                ahead.append((following, pool.submit(inputs.fetch, following, scratch)))
                held += following.bytes
                following = next(remaining, None)
            source, fetching = ahead.popleft()
            yield source, fetching
            if fetching.exception() is None and fetching.result().parent == scratch:
                fetching.result().unlink()
            held -= source.bytes
    finally:
        pool.shutdown(cancel_futures=True)
