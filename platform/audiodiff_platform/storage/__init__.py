"""Folders on local disks and on object stores, with commits, leases and indexes for the folders of jobs."""

from audiodiff_platform.storage.folder import Folder
from audiodiff_platform.storage.listing import Entry, PassedOver

__all__ = ["Entry", "Folder", "PassedOver"]
