"""Paths that the `datasets` library reads literally.

`datasets` reads some characters of a path as patterns or as chained URLs.
"""

import hashlib
import os
import re
import uuid
from pathlib import Path
from urllib.parse import quote

import datasets

from audiodiff_platform.storage import Folder

LINKS_FOLDER = "audiodiff-links"
_SPECIAL = re.compile(r"[*?\[\]]|::")


def plainly_named(folder: Folder) -> str:
    """Return a path for `datasets`: the local folder itself, or a folder of links to its files.

    Links are needed if names have special characters. The links are in the cache of `datasets`, at a path that depends
    only on the path of the folder, so that the cache recognizes the folder in later runs.
    """
    names = folder.names("**/*")
    if not any(map(_SPECIAL.search, (folder.root, *names))):
        return folder.root
    digest = hashlib.sha256(folder.root.encode(errors="surrogateescape")).hexdigest()
    link_folder = Path(datasets.config.HF_DATASETS_CACHE) / LINKS_FOLDER / digest[:32]
    links = {link_folder / quote(name): folder.path(name) for name in names}
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{uuid.uuid4().hex}")
        os.symlink(target, temporary)
        os.replace(temporary, link)
    for link in link_folder.rglob("*"):
        if link.is_symlink() and link not in links and not link.name.startswith("."):
            link.unlink(missing_ok=True)
    return str(link_folder)
