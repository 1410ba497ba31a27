"""Mel configurations in files."""

import pydantic

from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_core.mel import MelConfig


def read_mel_config(mel_config: str) -> MelConfig:
    """Read a mel configuration.

    Args:
        mel_config: Path or URI of a mel_config.json.

    Raises:
        ValueError: The file is missing, or is not a valid mel configuration.
    """
    try:
        filesystem, path = filesystem_of(mel_config)
        with filesystem.open(path, "rb") as file:
            return parsed(f"mel_config {mel_config}", file.read())
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"mel_config {mel_config}: no such file") from error


def parsed(origin: str, content: bytes) -> MelConfig:
    """Return the mel configuration that JSON states. A ValueError names `origin`."""
    try:
        return MelConfig.from_json(content.decode())
    except pydantic.ValidationError as error:
        problems = (
            f"{'.'.join(map(str, problem['loc']))} is {problem['input']!r}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ValueError(f"{origin}: {'; '.join(problems)}") from None
    except ValueError as error:
        raise ValueError(f"{origin}: is not JSON ({error})") from error
