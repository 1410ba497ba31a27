"""Local folders for the `datasets` library, which takes some characters of a path for patterns or for chains."""

import hashlib
import os
import re
import uuid
from pathlib import Path
from urllib.parse import quote

import datasets

from audiodiff_platform.storage import Folder

LINKS = "audiodiff-links"
_NOT_PLAIN = re.compile(r"[*?\[\]]|::")


def plainly_named(folder: Folder) -> str:
    """Return the path of a local folder, or of links to its files where `datasets` misreads its names.

    The links lie in the cache of `datasets`, at a place that depends on the folder's path alone, so that the cache knows
    the folder again.
    """
    names = folder.names("**/*")
    if not any(map(_NOT_PLAIN.search, (folder.root, *names))):
        return folder.root
    digest = hashlib.sha256(folder.root.encode(errors="surrogateescape")).hexdigest()
    place = Path(datasets.config.HF_DATASETS_CACHE) / LINKS / digest[:32]
    links = {place / quote(name): folder.path(name) for name in names}
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{uuid.uuid4().hex}")
        os.symlink(target, temporary)
        os.replace(temporary, link)
    for link in place.rglob("*"):
        if link.is_symlink() and link not in links and not link.name.startswith("."):
            link.unlink(missing_ok=True)
    return str(place)
