"""Measuring of slices in a folder that holds a dataset already."""

from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.mel_dataset import is_measured
from audiodiff_platform.storage import Folder


def check_measured(output: Folder, *, stated: bool) -> None:
    """Say that a dataset that was begun without measured features goes on without them.

    Args:
        output: Folder of the dataset.
        stated: Whether the user has stated that slices are measured, which is otherwise the default.

    Raises:
        ValueError: The user has stated it, and the dataset was begun without measured features.
    """
    if is_measured(output):
        return
    if stated:
        raise ValueError(
            f"measure: the dataset in {output.uri} was begun without measured features and cannot get them: "
            "use another folder, or omit measure to go on without them"
        )
    say(f"the dataset in {output.uri} was begun without measured features: it goes on without them")
