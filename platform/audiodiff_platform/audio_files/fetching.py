"""Download of sources ahead of their use, with a bound on disk space."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from audiodiff_platform.audio_files.inputs import Inputs
from audiodiff_platform.audio_files.source import Source

FETCHED_AHEAD = 2
SCRATCH_BYTES = 1 << 30  # per worker; a node runs one worker per core


def fetched(inputs: Inputs, sources: Iterable[Source], scratch: Path) -> Iterator[tuple[Source, "Future[Path]"]]:
    """Yield each source with a future of its local file.

    Up to FETCHED_AHEAD of the following sources are fetched in the background. A copy in `scratch` is removed when the
    next source is requested. The copies hold at most SCRATCH_BYTES together, except for a single larger source.

    Args:
        inputs: The input to fetch from.
        sources: The sources to fetch, in this order.
        scratch: A local folder for copies of remote files.

    Yields:
        A source, and a future with the result or the exception of `Inputs.fetch` for this source.
    """
    remaining = iter(sources)
    following = next(remaining, None)
    ahead: deque[tuple[Source, Future[Path]]] = deque()
    scratch_bytes = 0
    pool = ThreadPoolExecutor(1)
    try:
        while following is not None or ahead:
            while (
                following
                and len(ahead) <= FETCHED_AHEAD
                and (not scratch_bytes or scratch_bytes + following.bytes <= SCRATCH_BYTES)
            ):
                ahead.append((following, pool.submit(inputs.fetch, following, scratch)))
                scratch_bytes += following.bytes
                following = next(remaining, None)
            source, fetching = ahead.popleft()
            yield source, fetching
            if fetching.exception() is None and fetching.result().parent == scratch:
                fetching.result().unlink()
            scratch_bytes -= source.bytes
    finally:
        pool.shutdown(cancel_futures=True)
