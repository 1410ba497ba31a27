"""Lines for a person at a terminal."""

import sys


def say(message: str) -> None:
    """Print progress or a warning to standard error; standard output ends with the JSON summary of a job."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
