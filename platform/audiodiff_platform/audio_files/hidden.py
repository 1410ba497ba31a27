"""Names of files and folders that hold no music of the user's: hidden ones, and those that systems keep beside it."""

# In lower case: wastebaskets, versions, thumbnails, snapshots and metadata of operating systems and network drives.
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


def is_hidden(name: str) -> bool:
    """True for a name that begins with a dot; titles such as "...And Justice for All" begin with three."""
    return name.startswith(".") and not name.startswith("...")


def is_hidden_folder(name: str) -> bool:
    """True for the name of a hidden folder or of one that a system keeps for itself."""
    return is_hidden(name) or name.lower() in SYSTEM_FOLDERS
