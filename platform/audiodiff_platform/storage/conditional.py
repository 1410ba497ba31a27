"""Conditional writes on object stores.

A file is created only if it does not exist. A file is replaced only if it is unchanged.

S3 compares entity tags (`If-None-Match`, `If-Match`), GCS compares generations. If the response to a successful write
is lost, the client retries the write and the store rejects the retry. A rejected write therefore counts as successful
if the file has the written content.
"""

import re
import uuid
from urllib.parse import quote

from audiodiff_platform.storage.folder import Folder

PROBE = "_conditional"
_PROBES = re.compile(rf"{PROBE}-[0-9a-f]{{32}}")
_REJECTIONS = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})


def read_version(folder: Folder, name: str) -> tuple[bytes, str] | None:
    """Read a file and its version. Return None if the file does not exist.

    The version is read first, so it is never newer than the content.
    """
    try:
        with folder.reached(name):
            info = folder.filesystem.info(folder.path(name))
        return folder.read(name), str(info["generation"] if "generation" in info else info["ETag"])
    except FileNotFoundError:
        return None


def create(folder: Folder, name: str, content: bytes) -> bool:
    """Write a file that does not exist yet. Return False if the file exists with other content."""
    return folder.create(name, content) or _holds(folder, name, content)


def replace(folder: Folder, name: str, content: bytes, version: str) -> bool:
    """Replace a file if its version is still `version`.

    Args:
        folder: A folder on S3 or GCS.
        name: The name of the file.
        content: The new content. No other process must write the same content: a rejected write counts as successful
            if the file has this content.
        version: The version from `read_version`.

    Returns:
        False if the file has another version.
    """
    bucket, _, key = folder.path(name).partition("/")
    try:
        with folder.reached(name):
            if folder.scheme == "s3":
                folder.filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=content, IfMatch=version)
            else:
                upload = f"{folder.filesystem._location}/upload/storage/v1/b/{quote(bucket)}/o"
                folder.filesystem.call(
                    "POST", upload, uploadType="media", name=key, ifGenerationMatch=version, data=content, json_out=True
                )
    except FileExistsError:
        return _holds(folder, name, content)
    except OSError as error:
        if not _is_rejection(error):
            raise
        return _holds(folder, name, content)
    finally:
        folder.filesystem.invalidate_cache(folder.path(name))
    return True


def require_conditional_writes(folder: Folder) -> None:
    """Require that the store of a folder supports conditional writes.

    The owner of the folder may remove a probe as a leftover. The store is therefore tried twice.

    Raises:
        ValueError: The folder is not on S3 or GCS, or the store ignores the conditions.
    """
    if folder.scheme not in ("s3", "gs"):
        raise ValueError(f"{folder.uri}: jobs write only to local paths, s3:// and gs://")
    if not _obeys_conditions(folder) and not _obeys_conditions(folder):
        raise ValueError(
            f"{folder.uri}: the store ignores conditional writes, which keep two jobs from using one folder: "
            "use S3, GCS, a store that implements If-Match and If-None-Match, or a local path"
        )


def is_probe(name: str) -> bool:
    """Return True for the name of a file by which a store is tried, which a killed process leaves behind."""
    return _PROBES.fullmatch(name) is not None


def _obeys_conditions(folder: Folder) -> bool:
    probe = f"{PROBE}-{uuid.uuid4().hex}"
    created = create(folder, probe, b"1")
    wrong_version = "0" * 32 if folder.scheme == "s3" else "1"
    rejected = not create(folder, probe, b"2") and not replace(folder, probe, b"3", wrong_version)
    folder.remove(probe)
    return created and rejected


def _is_rejection(error: BaseException) -> bool:
    """Return True for the error of a write that the store rejected because of its condition."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else getattr(cause, "code", None)
        if code in _REJECTIONS or str(code) == "412":
            return True
        cause = cause.__cause__
    return False


def _holds(folder: Folder, name: str, content: bytes) -> bool:
    try:
        return folder.read(name) == content
    except FileNotFoundError:
        return False
