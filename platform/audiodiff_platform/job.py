"""What every entry point does: options, the verb, one JSON line, an exit status."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from itertools import dropwhile
from typing import Any, TypeVar

from ray.exceptions import RayError, UserCodeException

from audiodiff_platform.cluster import say
from audiodiff_platform.recipe import Options, from_command_line
from audiodiff_platform.storage.lease import LeaseLostError

DONE, FAILED, MISTAKE = 0, 1, 2

OptionsT = TypeVar("OptionsT", bound=Options)

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_BETWEEN_EXCEPTIONS = re.compile(r"\n+(?:The above exception was the direct cause|During handling of the above exception).*\n+")
_FRAME = re.compile(r'  File "|ray::|Traceback ')


class JobError(RuntimeError):
    """Work that could not be finished though it was asked for rightly; the message is one line for the user."""


def run(section: str, options: type[OptionsT], verb: Callable[[OptionsT], Mapping[str, Any]], description: str) -> int:
    """Runs `verb` as a command: the exit status is 0 when all is done, 2 for a user's mistake, 1 otherwise (bugs show a traceback)."""
    try:
        summary = verb(from_command_line(options, section, sys.argv[1:], description))
    except RayError as failure:  # before ValueError: what a worker raised is an instance of both, and no mistake of the user's
        say(f"error: a worker failed: {cause_of(failure)}")
        return FAILED
    except ValueError as mistake:
        say(f"error: {' '.join(str(mistake).split())}")
        return MISTAKE
    except (JobError, LeaseLostError, OSError) as failure:
        say(f"error: {' '.join(str(failure).split())}")
        return FAILED
    except KeyboardInterrupt:
        say("interrupted: run the same command again to go on from what is finished")
        return FAILED
    print(json.dumps(summary, sort_keys=True), flush=True)
    return DONE


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
