"""Errors that end a job with a one-line message on the terminal."""

import re
from itertools import dropwhile

from ray.exceptions import RayError, UserCodeException

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_BETWEEN_EXCEPTIONS = re.compile(
    r"\n+(?:The above exception was the direct cause|During handling of the above exception).*\n+"
)
_FRAME = re.compile(r'  File "|ray::|Traceback ')


class JobError(RuntimeError):
    """Failure of a job whose options were valid. The message is one line for the user."""


def cause_of(error: Exception) -> str:
    """Return the type and message of a worker's error in one line.

    Args:
        error: An error that Ray raised, or the worker's own error.

    Returns:
        "ValueError: no such file", for example, without the traceback that Ray puts before the type.
    """
    cause = getattr(error, "cause", error)
    if cause is not error and not isinstance(cause, RayError):
        return one_line(f"{type(cause).__name__}: {cause}")
    # Ray Data, Ray Train and failed actor constructors pass on the worker's error only as text.
    raised = _BETWEEN_EXCEPTIONS.split(_COLORS.sub("", str(error)))
    lines = raised[-2 if isinstance(cause, UserCodeException) and len(raised) > 1 else -1].strip().splitlines()
    after_frames = lines[max((number for number, line in enumerate(lines, start=1) if _FRAME.match(line)), default=0) :]
    return one_line(" ".join(dropwhile(lambda line: line.startswith(" "), after_frames)))


def one_line(text: str) -> str:
    """Return a message without line breaks and terminal colors."""
    return " ".join(_COLORS.sub("", text).split())


class LeaseLostError(Exception):
    """Loss of the lease of an output folder.

    Another job took over the lease, or the owner could not renew the lease in time.
    """
