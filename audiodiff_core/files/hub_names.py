"""Names of Hugging Face Hub repositories, as users write them or paste them from a browser."""

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
    """Convert the address of a Hub repository to OWNER/NAME, and return any other source unchanged.

    Args:
        source: A local path, a URI, OWNER/NAME with or without a trailing slash, or the address of a repository's page
            on the Hub, which may end with `/tree/main`.
        kind: Required kind of the repository at the address.

    Raises:
        ValueError: If `source` is any other address on the Hub. The message does not contain `source`.
    """
    if Path(source).exists():
        return source
    if (address := _ADDRESS.fullmatch(source)) is None:
        name = source.rstrip("/")
        return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else source
    parts = [part for part in (address["path"] or "").split("/") if part]
    address_kind = _KINDS[parts.pop(0)] if parts and parts[0] in _KINDS else "model"
    if len(parts) < 2:
        raise ValueError(f"not the address of a {kind} on the Hugging Face Hub: write OWNER/NAME")
    if address_kind != kind:
        raise ValueError(f"address of a {address_kind} on the Hugging Face Hub: must be the address of a {kind}")
    owner, name, *page = parts
    if page not in ([], ["tree", "main"]):
        raise ValueError(f"address of a page inside {owner}/{name}: write {owner}/{name}, which means its branch main")
    return f"{owner}/{name}"
