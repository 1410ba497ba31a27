"""Public names: complete, documented, and imported only on use."""

import subprocess
import sys
import typing
from pathlib import Path

import pytest

import audiodiff_core


@pytest.mark.parametrize("name", audiodiff_core.__all__)
def test_each_is_there_with_a_docstring_of_its_own(name: str) -> None:
    value = getattr(audiodiff_core, name)
    assert name in dir(audiodiff_core)
    if callable(value) and typing.get_origin(value) is not typing.Literal:
        assert value.__doc__


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Pipelin"):
        getattr(audiodiff_core, "Pipelin")  # noqa: B009


def test_reading_audio_needs_no_torch() -> None:
    code = "import sys, audiodiff_core; audiodiff_core.decode_audio; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
