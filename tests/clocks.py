"""A clock that a test sets."""


class Clock:
    """A clock that stands still until a test sets `now`.

    Args:
        now: Time in seconds.
    """

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
