"""Folders on local disks and on object stores."""

from audiodiff_platform.storage.folder import Entry, Folder

__all__ = ["Entry", "Folder"]
