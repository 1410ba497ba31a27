"""What every entry point does: options, the verb, one JSON line, an exit status."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ray.exceptions import RayError

from audiodiff_platform.entry.errors import JobError, LeaseLostError, cause_of
from audiodiff_platform.entry.options import Options, from_command_line
from audiodiff_platform.entry.terminal import say

DONE, FAILED, MISTAKE = 0, 1, 2

OptionsT = TypeVar("OptionsT", bound=Options)


def run(section: str, options: type[OptionsT], verb: Callable[[OptionsT], Mapping[str, Any]], description: str) -> int:
    """Runs `verb` as a command: the exit status is 0 when all is done, 2 for a user's mistake, 1 otherwise (bugs show a traceback)."""
    try:
        summary = verb(from_command_line(options, section, sys.argv[1:], description))
    except (
        RayError
    ) as failure:  # before ValueError: what a worker raised is an instance of both, and no mistake of the user's
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
