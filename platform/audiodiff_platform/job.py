"""What every entry point does: options, the verb, one JSON line, an exit status."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from audiodiff_platform.cluster import say
from audiodiff_platform.recipe import Options, from_command_line

DONE, FAILED, MISTAKE = 0, 1, 2

OptionsT = TypeVar("OptionsT", bound=Options)


class JobError(RuntimeError):
    """Work that could not be finished though it was asked for rightly; the message is one line for the user."""


def run(section: str, options: type[OptionsT], verb: Callable[[OptionsT], Mapping[str, Any]], description: str) -> int:
    """Runs `verb` as a command: the exit status is 0 when all is done, 2 for a user's mistake, 1 otherwise (bugs show a traceback)."""
    try:
        summary = verb(from_command_line(options, section, sys.argv[1:], description))
    except ValueError as mistake:
        say(f"error: {' '.join(str(mistake).split())}")
        return MISTAKE
    except (JobError, OSError) as failure:
        say(f"error: {' '.join(str(failure).split())}")
        return FAILED
    except KeyboardInterrupt:
        say("interrupted: run the same command again to go on from what is finished")
        return FAILED
    print(json.dumps(summary, sort_keys=True), flush=True)
    return DONE
