"""Conditional writes on object stores: create a file only if it is absent, replace it only if it is unchanged.

S3 compares entity tags (`If-None-Match`, `If-Match`), GCS compares generations. A store whose answer is lost may have done
the write, and the client's retry is then refused, so a refused write is compared with what the store holds.
"""

import uuid
from urllib.parse import quote

from audiodiff_platform.storage.folder import Folder

PROBE = "_conditional"
_REFUSALS = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})


def read_version(folder: Folder, name: str) -> tuple[bytes, str] | None:
    """Read a file and its version, at most as new as the content, or return None if there is no file."""
    try:
        with folder.reached(name):
            info = folder.filesystem.info(folder.path(name))
        return folder.read(name), str(info["generation"] if "generation" in info else info["ETag"])
    except FileNotFoundError:
        return None


def create(folder: Folder, name: str, content: bytes) -> bool:
    """Write a file that is absent; return False if another content is there."""
    return folder.create(name, content) or _holds(folder, name, content)


def replace(folder: Folder, name: str, content: bytes, version: str) -> bool:
    """Write a file that still has `version`; return False if it has another by now.

    Args:
        folder: A folder on S3 or GCS.
        name: The name of the file.
        content: A content that no other process writes, so that a write whose answer was lost is recognised.
        version: The version that `read_version` gave.
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
        if not _is_refusal(error):
            raise
        return _holds(folder, name, content)
    finally:
        folder.filesystem.invalidate_cache(folder.path(name))
    return True


def require_conditional_writes(folder: Folder) -> None:
    """Raise ValueError if the store of a folder overwrites files that it was told not to overwrite."""
    if folder.scheme not in ("s3", "gs"):
        raise ValueError(f"{folder.uri}: only local paths, s3:// and gs:// can hold what a job writes")
    probe = f"{PROBE}-{uuid.uuid4().hex}"
    first = create(folder, probe, b"1")
    refused = not create(folder, probe, b"2") and not replace(
        folder, probe, b"3", "0" * 32 if folder.scheme == "s3" else "1"
    )
    folder.remove(probe)
    if not (first and refused):
        raise ValueError(
            f"{folder.uri}: the store ignores conditional writes, by which two jobs are kept apart: use S3, GCS, "
            "a store that implements If-Match and If-None-Match, or a local path"
        )


def _is_refusal(error: BaseException) -> bool:
    """Return True for a write that the store refused for its condition, by the answer that the client raised."""
    cause: BaseException | None = error
    while cause is not None:
        answer = getattr(cause, "response", None)
        code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else getattr(cause, "code", None)
        if code in _REFUSALS or str(code) == "412":
            return True
        cause = cause.__cause__
    return False


def _holds(folder: Folder, name: str, content: bytes) -> bool:
    try:
        return folder.read(name) == content
    except FileNotFoundError:
        return False
