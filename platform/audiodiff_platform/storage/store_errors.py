"""Conversion of the errors of object store clients to OSError."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def named_os_errors(address: str, root: str) -> Iterator[None]:
    """Convert the errors of a store's client to OSError with the address of the object.

    The clients raise errors of five libraries. FileNotFoundError and PermissionError keep their types. Other instances
    of OSError are not changed.

    Args:
        address: The URI of the object, for messages.
        root: The path of the folder in the client's filesystem. A FileNotFoundError or PermissionError whose message
            contains the path is not changed.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        if root in str(error):
            raise
        raise type(error)(f"{address}: {error}") from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{address}: {type(error).__name__}: {' '.join(str(error).split())}") from error
