"""Lines for a person at a terminal."""

import sys


def say(message: str) -> None:
    """Print progress or a warning to standard error; standard output ends with the JSON summary of a job."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """A stretch of time for a person: its two largest units."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
