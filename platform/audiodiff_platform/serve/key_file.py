"""Key file: the names and hashes of the API keys that a server accepts.

    # a comment
    alice sha256$f0e1d2c3b4a5968778695a4b3c2d1e0f$5d1f...

A line has the name of a key and its salted SHA-256 hash; the file does not contain the keys. The keys are random and
have 256 bits, so that the hash of a key cannot be inverted by trial, however fast the hash is. A slow hash, which
protects the passwords that people choose, would only slow down each request. The keys of a file share a salt, so that a
request costs one hash; the salt keeps tables of hashes that were made for another file from being of use.
"""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from audiodiff_platform.storage import Folder, conditional

MAX_FILE_BYTES = 256 * 1024
MAX_KEYS = 1_000
KEY_BYTES, SALT_BYTES = 32, 16
PREFIX = "audiodiff-"  # lets scanners of repositories recognize a leaked key
ENVIRONMENT, ANONYMOUS = "environment", "anonymous"
RESERVED_NAMES = frozenset({ENVIRONMENT, ANONYMOUS})
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_HASH = re.compile(r"sha256\$([0-9a-f]{32})\$([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True)
class HashedKey:
    """The name and the salted hash of a key."""

    name: str
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, key: bytes, salt: bytes | None = None) -> "HashedKey":
        """Hash a key, with a new salt if there is none."""
        salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        return cls(name, salt, _digest(salt, key))

    def line(self) -> str:
        """Return the line of the key file."""
        return f"{self.name} sha256${self.salt.hex()}${self.digest.hex()}"


def names_of(keys: Sequence[HashedKey], key: bytes) -> list[str]:
    """Return the names of the entries whose key is `key`.

    The time depends on the number of entries and not on how much of a hash is equal. `key` is hashed once per salt.
    """
    digests = {salt: _digest(salt, key) for salt in {known.salt for known in keys}}
    return [known.name for known in keys if hmac.compare_digest(known.digest, digests[known.salt])]


def parsed(content: bytes, source: str) -> tuple[HashedKey, ...]:
    """Return the keys of a key file.

    Args:
        content: The content of the file.
        source: The address of the file, for messages. Messages never contain a line, which could hold a key.

    Raises:
        ValueError: The file is too large, or a line is not valid.
    """
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{source}: a key file has at most {MAX_FILE_BYTES:,} bytes")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{source} is not UTF-8 text: make it with python -m audiodiff_platform.serve.keys") from None
    keys: dict[str, HashedKey] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition(" ")
        hashed = _HASH.fullmatch(rest.strip())
        if not NAME.fullmatch(name) or hashed is None:
            raise ValueError(f"{source} line {number}: must be NAME sha256$SALT$HASH, as the command add writes it")
        require_name(name, f"{source} line {number}")
        if name in keys:
            raise ValueError(f"{source} line {number}: {name} has two keys: revoke it, or use another name")
        keys[name] = HashedKey(name, bytes.fromhex(hashed[1]), bytes.fromhex(hashed[2]))
    if len(keys) > MAX_KEYS:
        raise ValueError(f"{source}: {len(keys):,} keys: a key file has at most {MAX_KEYS:,}")
    return tuple(keys.values())


def require_name(name: str, where: str = "name") -> None:
    """Require a valid name of a key.

    Raises:
        ValueError: The name has other characters, is too long, or is reserved.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{where}: must be 1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit")
    if name in RESERVED_NAMES:
        raise ValueError(f"{where}: {name} is reserved: use another name")


def add(uri: str, name: str) -> str:
    """Make a key and append its hash to a key file, which is created if it does not exist.

    Args:
        uri: The path or URI of the file.
        name: The name of the new key.

    Returns:
        The key. It is not stored anywhere.
    """
    require_name(name)
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)

    def appended(content: bytes) -> bytes:
        keys = parsed(content, uri)
        if name in {known.name for known in keys}:
            raise ValueError(f"{uri}: {name} has a key: revoke it, or use another name")
        line = HashedKey.of(name, key.encode(), keys[0].salt if keys else None).line()
        new = content + (b"\n" if content and not content.endswith(b"\n") else b"") + f"{line}\n".encode()
        parsed(new, uri)
        return new

    _edit(uri, appended)
    return key


def revoke(uri: str, name: str) -> None:
    """Remove the key `name` from a key file. Other lines keep their content."""

    def without(content: bytes) -> bytes:
        if name not in {known.name for known in parsed(content, uri)}:
            raise ValueError(f"{uri}: no key is named {name}")
        lines = content.decode().splitlines(keepends=True)
        return "".join(line for line in lines if line.strip().partition(" ")[0] != name).encode()

    _edit(uri, without)


def _digest(salt: bytes, key: bytes) -> bytes:
    return hashlib.sha256(salt + key).digest()


def located(uri: str) -> tuple[Folder, str]:
    """Return the folder and the name of a file given by its path or URI."""
    folder, _, name = uri.rpartition("/")
    if not name or folder.endswith(("/", ":")):
        raise ValueError(f"key file {uri}: must be a path, or a URI such as s3://BUCKET/FOLDER/FILE")
    return Folder(folder or ("/" if uri.startswith("/") else ".")), name


def _edit(uri: str, change: Callable[[bytes], bytes]) -> None:
    folder, name = located(uri)
    if folder.is_local:
        _edit_on_disk(Path(folder.path(name)), change)
        return
    conditional.require_conditional_writes(folder)
    written = False
    while not written:
        current = conditional.read_version(folder, name)
        if current is None:
            written = conditional.create(folder, name, change(b""))
        else:
            written = conditional.replace(folder, name, change(current[0]), current[1])


def _edit_on_disk(link: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace the content of a file atomically. A new file has mode 0600, a changed file keeps its mode."""
    path = link.resolve()
    with _locked(path) as mode:
        content = change(path.read_bytes())
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold the operating-system lock of a file, and yield the mode of the file. A missing file is created empty."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            status = os.fstat(descriptor)
            if os.path.samestat(status, path.stat()):  # if not, the file was replaced before it was locked
                yield stat.S_IMODE(status.st_mode)
                return
        finally:
            os.close(descriptor)
