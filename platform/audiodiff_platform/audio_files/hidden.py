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
"""Lower-case names of the trash, version, thumbnail, snapshot and metadata folders of systems and network drives."""


def is_hidden(name: str) -> bool:
    """Return True if a name begins with a dot, but not with three: "...And Justice for All" is a title."""
    return name.startswith(".") and not name.startswith("...")


def is_hidden_folder(name: str) -> bool:
    """Return True for the name of a hidden folder or a system folder."""
    return is_hidden(name) or name.lower() in SYSTEM_FOLDERS
