"""Models that are installed with this package. Their name is `builtin:NAME`."""

from pathlib import Path

from audiodiff_core.files.model_files import CheckpointError

PREFIX = "builtin:"
FOLDER = Path(__file__).parent / "pretrained"


def is_builtin(source: str) -> bool:
    """Return True if `source` names a model that is installed with this package."""
    return source.startswith(PREFIX)


def builtin_folder(source: str) -> Path:
    """Return the folder of the model `builtin:NAME`.

    Raises:
        CheckpointError: If no model has this name.
    """
    names = sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())
    name = source.removeprefix(PREFIX)
    if name not in names:
        raise CheckpointError(f"no model of this name: use one of {', '.join(PREFIX + name for name in names)}")
    return FOLDER / name
