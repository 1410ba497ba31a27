"""Errors that end a job with a one-line message."""

import re
from itertools import dropwhile

from ray.exceptions import RayError, UserCodeException

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_BETWEEN_EXCEPTIONS = re.compile(
    r"\n+(?:The above exception was the direct cause|During handling of the above exception).*\n+"
)
_FRAME = re.compile(r'  File "|ray::|Traceback ')


class JobError(RuntimeError):
    """Work that could not be finished though it was asked for rightly; the message is one line for the user."""


def cause_of(error: Exception) -> str:
    """In one line, what a worker raised or died of: type and message, without the traceback that Ray puts before them."""
    cause = getattr(error, "cause", error)
    if cause is not error and not isinstance(cause, RayError):
        return one_line(f"{type(cause).__name__}: {cause}")
    # Ray Data, Ray Train and actors that cannot be made hand on the worker's own error as text only.
    raised = _BETWEEN_EXCEPTIONS.split(_COLOURS.sub("", str(error)))
    lines = raised[-2 if isinstance(cause, UserCodeException) and len(raised) > 1 else -1].strip().splitlines()
    after_frames = lines[max((place for place, line in enumerate(lines, start=1) if _FRAME.match(line)), default=0) :]
    return one_line(" ".join(dropwhile(lambda line: line.startswith(" "), after_frames)))


def one_line(text: str) -> str:
    """Return a message without line breaks and terminal colours."""
    return " ".join(_COLOURS.sub("", text).split())


class LeaseLostError(Exception):
    """The lease of an output folder has another owner by now."""
