# The public names of the package, which `__init__.py` reads from this file.
from .containers import items as items
from .fetching import fetched as fetched
from .inputs import Inputs as Inputs
from .item import AudioItem as AudioItem
from .parts import in_parts as in_parts
from .ranges import source_sha256 as source_sha256
from .skipped import described as described
from .skipped import shortened as shortened
from .skipped import skipped_in as skipped_in
from .source import ByteRange as ByteRange
from .source import Source as Source
