"""Background tasks of an ingress replica: reading changed keys, running jobs, removing old results."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

logger = logging.getLogger("ray.serve")


@asynccontextmanager
async def in_background(app: FastAPI) -> AsyncIterator[None]:
    """Run the functions in `app.state.background` until the replica ends."""
    functions: list[Callable[[], Awaitable[None]]] = getattr(app.state, "background", [])
    tasks = [asyncio.ensure_future(_logged(function)) for function in functions]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _logged(function: Callable[[], Awaitable[None]]) -> None:
    try:
        await function()
    except Exception:
        logger.exception("work in the background ended")
        raise
