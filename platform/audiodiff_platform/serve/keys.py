"""API keys: which key a request has, with revocation while the server runs.

    python -m audiodiff_platform.serve.keys add FILE NAME       make a key and print it once
    python -m audiodiff_platform.serve.keys revoke FILE NAME    remove a key
    python -m audiodiff_platform.serve.keys list FILE           print the names of the keys

FILE is a path or a URI. A running server reads a changed file within seconds. Logs and limits use the name of a key;
the key itself is never logged, stored or passed to a deployment. Of the key in AUDIODIFF_API_KEY, the process that
deploys the server passes the salted hash to the replicas.
"""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence

import pydantic
import pydantic_settings

from audiodiff_platform.serve import key_file
from audiodiff_platform.serve.key_file import ANONYMOUS, ENVIRONMENT, HashedKey

MAX_AUTHORIZATION_CHARACTERS = 1_024
REFRESH_S = 1.0
GRACE_S = 300.0
DONE, FAILED, MISTAKE = 0, 1, 2

logger = logging.getLogger(__name__)


class KeysUnavailableError(Exception):
    """The key file has not been readable for so long that its last known keys are no longer accepted."""


class ApiKeys:
    """The keys that a server accepts: one from the environment, any number from a key file.

    An unreadable, missing or invalid file does not lock out the clients at once: the last keys that were read are
    accepted for `grace_s` seconds, so that a store may be out of reach for minutes. After that time, no key of the file
    is accepted, so that a broken file does not keep a revoked key alive. To revoke all keys, remove all lines; do not
    remove the file.

    Args:
        environment: The hashed key of AUDIODIFF_API_KEY, or None.
        file: The path or URI of the key file, or None.
        grace_s: The time in seconds for which keys of an unreadable file are accepted.
        clock: A monotonic clock in seconds.

    Raises:
        ValueError: The file cannot be read or is not valid.
    """

    def __init__(
        self,
        environment: HashedKey | None = None,
        file: str | None = None,
        *,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environment = () if environment is None else (environment,)
        self._uri, self._grace_s, self._clock = file, grace_s, clock
        self._of_file: tuple[HashedKey, ...] = ()
        self._version = ""
        self._read_at = clock()
        self._failure = ""
        if file is not None:
            self._folder, self._name = key_file.located(file)
            try:
                self._read()
            except OSError as error:
                raise ValueError(f"key_file {file} cannot be read ({error}): make it with the command add") from error

    @property
    def are_required(self) -> bool:
        """True if a key or a key file is configured."""
        return bool(self._environment) or self._uri is not None

    def name_of(self, authorization: str | None) -> str | None:
        """Return the name of the key in an Authorization header.

        The name is "anonymous" if no key is required. All known keys are compared, so that the time does not tell which
        key is nearly right. No file is read.

        Args:
            authorization: The value of the header, decoded as Latin-1, or None.

        Returns:
            The name, or None if the key is missing or wrong.

        Raises:
            KeysUnavailableError: The key file was not readable for too long. The server answers with status 503.
        """
        if not self.are_required:
            return ANONYMOUS
        key = _bearer(authorization)
        names = [] if key is None else key_file.names_of(self._environment, key)
        if key is not None and self._is_current:
            names += key_file.names_of(self._of_file, key)
        if not names and not self._is_current:
            raise KeysUnavailableError(f"key file {self._uri} has not been readable for {self._grace_s:.0f} s")
        return names[0] if names else None

    @property
    def _is_current(self) -> bool:
        return not self._failure or self._clock() - self._read_at <= self._grace_s

    def refresh(self) -> None:
        """Read the key file if it has changed. The call blocks for one or two requests to the disk or the store."""
        if self._uri is None:
            return
        try:
            self._read()
        except (OSError, ValueError) as error:
            if str(error) != self._failure:
                logger.warning("the last known keys are accepted for %.0f s: %s", self._grace_s, error)
            self._failure = str(error)

    async def keep_fresh(self, every_s: float = REFRESH_S) -> None:
        """Refresh the keys until the task is cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.refresh)

    def _read(self) -> None:
        entry = self._folder.entry(self._name)
        version = f"{entry.version} {entry.size}"
        if version != self._version:
            if entry.size > key_file.MAX_FILE_BYTES:
                raise ValueError(f"{self._uri}: a key file has at most {key_file.MAX_FILE_BYTES:,} bytes")
            keys = key_file.parsed(self._folder.read(self._name), str(self._uri))
            if self._version:
                logger.info("%d keys read from %s", len(keys), self._uri)
            self._of_file, self._version = keys, version
        self._read_at, self._failure = self._clock(), ""


class _Environment(pydantic_settings.BaseSettings):
    """Key from the environment, which keeps the key out of recipes and process lists."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="AUDIODIFF_")

    api_key: pydantic.SecretStr | None = None


def environment_key() -> HashedKey | None:
    """Return the hashed key of AUDIODIFF_API_KEY, or None if the variable is not set.

    Raises:
        ValueError: The key is empty or too long.
    """
    key = _Environment().api_key
    if key is None:
        return None
    content = key.get_secret_value().encode()
    limit = MAX_AUTHORIZATION_CHARACTERS - len("Bearer ")
    if not content or content != content.strip() or len(content) > limit:
        raise ValueError(
            f"AUDIODIFF_API_KEY: must have 1 to {limit:,} bytes without spaces around them: set a key, or unset it"
        )
    return HashedKey.of(ENVIRONMENT, content)


def _bearer(authorization: str | None) -> bytes | None:
    """Return the key of the header `Bearer KEY`."""
    if authorization is None or len(authorization) > MAX_AUTHORIZATION_CHARACTERS:
        return None
    scheme, _, key = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        return None
    try:
        return key.strip().encode("latin-1")
    except UnicodeEncodeError:
        return None


def main(arguments: Sequence[str]) -> int:
    """Run the command. Return its exit status: 0, 2 for a mistake of the user, 1 for an error of the disk or store."""
    parser = argparse.ArgumentParser(
        "python -m audiodiff_platform.serve.keys",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, purpose in (("add", "make a key"), ("revoke", "remove a key"), ("list", "print the names")):
        subparser = commands.add_parser(command, help=purpose)
        subparser.add_argument("file", metavar="FILE", help="path or URI of the key file")
        if command != "list":
            subparser.add_argument("name", metavar="NAME", help="name of the key, for logs and limits")
    options = parser.parse_args(arguments)
    try:
        match options.command:
            case "add":
                print(key_file.add(options.file, options.name))
            case "revoke":
                key_file.revoke(options.file, options.name)
            case _:
                folder, name = key_file.located(options.file)
                for key in key_file.parsed(folder.read(name), options.file):
                    print(key.name)
    except ValueError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return MISTAKE
    except OSError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
