"""Output folders that lie in input folders."""

import os

from audiodiff_platform.storage import Folder


def output_in(input_dir: str, output_dir: str) -> str | None:
    """Return the name of an output folder in an input folder, or None if it lies elsewhere.

    Links on a disk are followed.

    Raises:
        ValueError: Both are the same folder.
    """
    place, output = f"{_place(input_dir)}/", f"{_place(output_dir)}/"
    if place == output:
        raise ValueError(f"output_dir {output_dir} is input_dir: use another folder, whose files are no input")
    return output.removeprefix(place).rstrip("/") if output.startswith(place) else None


def _place(uri: str) -> str:
    folder = Folder(uri)
    path = os.path.realpath(folder.root) if folder.is_local else folder.root
    return f"{folder.scheme}://{path.rstrip('/')}"
