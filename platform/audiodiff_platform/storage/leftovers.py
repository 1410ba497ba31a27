"""Removal of what killed processes leave in the output folder of a job, outside its folders of parts."""

from audiodiff_platform.storage.atomic_files import is_temporary
from audiodiff_platform.storage.conditional import is_probe
from audiodiff_platform.storage.folder import Folder

PLACES = ("*", "_commits/*", "_plan/**")


def remove_leftovers(folder: Folder) -> None:
    """Remove scratch folders, temporary files of writes, and probes of a store. The caller holds the lease."""
    folder.remove("_tmp")
    names = [name for place in PLACES for name in folder.names(place)]
    files = [(name, name.rpartition("/")[2]) for name in names]
    folder.remove_files([name for name, file in files if is_temporary(file) or is_probe(file)])
