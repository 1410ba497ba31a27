"""Input audio of jobs: files in a folder or on a list, and members of containers.

`__init__.pyi` lists the public names. Each name is imported on first use, so that the child process of `decoder`
loads neither Ray nor Arrow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
