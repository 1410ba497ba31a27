"""Folders on local disks and on object stores, and the commits and leases of jobs in them."""

from audiodiff_platform.storage.folder import Folder
from audiodiff_platform.storage.listing import Entry, PassedOver

__all__ = ["Entry", "Folder", "PassedOver"]
