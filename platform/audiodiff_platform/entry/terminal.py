"""Messages for a person at a terminal."""

import sys


def say(message: str) -> None:
    """Print a progress line or a warning to standard error.

    Standard output is for the JSON summary of a job.
    """
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Format a duration in its two largest units, such as "2 h 5 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
