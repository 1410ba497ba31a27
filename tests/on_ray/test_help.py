"""`--help` of every job: each option with its meaning, its bounds or unit, and its default."""

import re
import runpy
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

from audiodiff_platform.demo.job import DemoOptions
from audiodiff_platform.entry.options import SECTIONS, Options

pytestmark = pytest.mark.workers

JOBS = Path(__file__).parents[2] / "jobs"
BOUND = re.compile(r"at least|at most|more than|less than")
UNIT = re.compile(r"\bin Hz\b|\bsamples\b|a number, or LOW:HIGH")


def options_of(job: str) -> type[Options]:
    if job == "demo":
        return DemoOptions
    module, _, name = SECTIONS[job].partition(":")
    options: type[Options] = getattr(import_module(module), name)
    return options


def helps(text: str) -> dict[str, str]:
    """Return the help text of each option, by name."""
    entries = re.split(r"^  (?=-)", text.partition("\noptions:\n")[2].partition("\n\n")[0], flags=re.MULTILINE)
    named = ((re.match(r"--(\w+)", entry), " ".join(entry.split())) for entry in entries)
    return {name[1]: entry for name, entry in named if name}


def takes_number(annotation: Any) -> bool:
    return bool({annotation, *get_args(annotation)} & {int, float})


@pytest.mark.parametrize("job", [file.stem for file in sorted(JOBS.glob("*.py"))])
def test_help_gives_meaning_bounds_and_default(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(JOBS / f"{job}.py"), run_name="__main__")
    assert exit_.value.code == 0
    shown = helps(capsys.readouterr().out)
    fields = options_of(job).model_fields
    assert shown.keys() == {*fields, "recipe"}
    for name, field in fields.items():
        text = shown[name]
        assert field.description, name
        assert " ".join(field.description.split()) in text, name
        assert text.endswith(")"), name
        assert ("required)" in text) == field.is_required(), name
        assert field.is_required() or "default: " in text, name
        if takes_number(field.annotation):
            assert BOUND.search(text) or UNIT.search(text), f"{name}: neither bounds nor a unit: {text}"
