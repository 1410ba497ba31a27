"""Names of hidden files, hidden folders and system folders, which are skipped."""

SYSTEM_FOLDERS = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "__macosx",
        "lost+found",
        "network trash folder",
        "system volume information",
        "temporary items",
        "thevolumesettingsfolder",
        "~snapshot",
    }
)
"""Lower-case names of folders that operating systems and network drives create.

The folders hold trash, old versions, thumbnails, snapshots and metadata.
"""


def is_hidden(name: str) -> bool:
    """Return True if a name begins with a dot, but not with three dots.

    Three dots begin titles, such as "...And Justice for All".
    """
    return name.startswith(".") and not name.startswith("...")


def is_hidden_folder(name: str) -> bool:
    """Return True for the name of a hidden folder or a system folder."""
    return is_hidden(name) or name.lower() in SYSTEM_FOLDERS
