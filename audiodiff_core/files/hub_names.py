"""Names of repositories on the Hugging Face Hub, as they are written and as they are pasted from a browser."""

import re
from pathlib import Path
from typing import Literal

from huggingface_hub import constants

RepositoryKind = Literal["model", "dataset"]

_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co", constants.ENDPOINT.partition("://")[2]}
_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
_ADDRESS = re.compile(
    rf"(?:https?://)?(?:{'|'.join(map(re.escape, sorted(_HOSTS)))})(?:/(?P<path>[^?#]*))?(?:[?#].*)?", re.IGNORECASE
)


def repository_name(source: str, kind: RepositoryKind = "model") -> str:
    """Return OWNER/NAME for `OWNER/NAME/` and for the address of a repository's page, any other `source` as it is.

    The address may be that of the branch main (`/tree/main`). Raises ValueError for an address of anything else; the
    message does not name `source`.
    """
    if Path(source).exists():
        return source
    if (address := _ADDRESS.fullmatch(source)) is None:
        name = source.rstrip("/")
        return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else source
    parts = [part for part in (address["path"] or "").split("/") if part]
    stated = _KINDS[parts.pop(0)] if parts and parts[0] in _KINDS else "model"
    if len(parts) < 2:
        raise ValueError(f"is the address of no {kind} on the Hugging Face Hub: write OWNER/NAME")
    if stated != kind:
        raise ValueError(f"is the address of a {stated} on the Hugging Face Hub, a {kind} is expected")
    owner, name, *page = parts
    if page not in ([], ["tree", "main"]):
        raise ValueError(
            f"is the address of a page inside {owner}/{name}: write {owner}/{name}, which stands for its branch main"
        )
    return f"{owner}/{name}"
