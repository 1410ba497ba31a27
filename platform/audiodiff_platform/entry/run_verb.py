"""Execution of a verb as a command: options, summary, error messages, exit status."""

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
    """Run a verb as a command, with the options in `sys.argv`.

    The summary of the verb is printed to standard output as one line of JSON. Errors are printed to standard error as
    one line; only bugs show a traceback.

    Args:
        section: The recipe section of the verb.
        options: The options class of the verb.
        verb: The function that does the work and returns the summary.
        description: The text at the top of `--help`.

    Returns:
        The exit status: 0 if the verb finished, 2 for a mistake of the user, 1 for any other failure.
    """
    try:
        summary = verb(from_command_line(options, section, sys.argv[1:], description))
    # This clause precedes ValueError: a worker's error can be an instance of both, and is not a mistake of the user.
    except RayError as failure:
        say(f"error: a worker failed: {cause_of(failure)}")
        return FAILED
    except ValueError as mistake:
        say(f"error: {' '.join(str(mistake).split())}")
        return MISTAKE
    except (JobError, LeaseLostError, OSError) as failure:
        say(f"error: {' '.join(str(failure).split())}")
        return FAILED
    except KeyboardInterrupt:
        say("interrupted: run the same command again to continue from the finished work")
        return FAILED
    print(json.dumps(summary, sort_keys=True), flush=True)
    return DONE
