"""Refusal of output folders in input folders."""

import os

from audiodiff_platform.storage import Folder


def require_outside(output_dir: str, input_dir: str) -> None:
    """Require that the output folder of a job is neither its input folder nor in it.

    A rerun would otherwise take files of the output for input. Links on a disk are followed.

    Raises:
        ValueError: The output folder is the input folder or lies in it.
    """
    if f"{_place(output_dir)}/".startswith(f"{_place(input_dir)}/"):
        raise ValueError(f"output_dir {output_dir} lies in input_dir {input_dir}: use a folder outside")


def _place(uri: str) -> str:
    folder = Folder(uri)
    path = os.path.realpath(folder.root) if folder.is_local else folder.root
    return f"{folder.scheme}://{path.rstrip('/')}"
