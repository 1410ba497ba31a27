"""Options of the verbs, from a recipe file (`jobs/recipes/NAME.yaml`, a section a verb) and the flags that override it.

Each verb states its options beside the code that obeys them, as a subclass of `Options`; names, defaults and ranges exist nowhere else.
A recipe gives the texts that flags give, and `validated` parses both: an option means the same in a recipe and on the
command line.
"""

import argparse
import difflib
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, get_origin

import pydantic
from pydantic.fields import FieldInfo

from audiodiff_platform.entry.yaml_text import load_text

SECTIONS: Mapping[str, str] = {
    "prepare": "audiodiff_platform.prepare.job:PrepareOptions",
    "train": "audiodiff_platform.train.options:TrainOptions",
    "train_vae": "audiodiff_platform.train.autoencoder:TrainVaeOptions",
    "encode": "audiodiff_platform.encode.job:EncodeOptions",
    "generate": "audiodiff_platform.generate.job:GenerateOptions",
    "evaluate": "audiodiff_platform.evaluate.job:EvaluateOptions",
    "serve": "audiodiff_platform.serve.job:ServeOptions",
}

NO_VALUE = frozenset({"none", "null", "~"})
"""Texts, in any case, that leave an option without a value."""

COMMAND_LINE = "command line"
VALUES_HELP = (
    "The value none leaves an option unset. Every option may stand in a recipe under its name; "
    "switches are true or false there."
)


class Options(pydantic.BaseModel):
    """What a verb can be told. Frozen; an unknown key is an error that names the nearest known one."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class OutputOptions(Options):
    """Options of a verb that owns its output folder while it works."""

    take_over: bool = pydantic.Field(
        False,
        description="on an object store: take the folder of a job that died, without waiting for its lease to expire",
    )


OptionsT = TypeVar("OptionsT", bound=Options)


def from_command_line(options: type[OptionsT], section: str, arguments: Sequence[str], description: str) -> OptionsT:
    """Parse `arguments`, and the recipe that they may name, to options; raises ValueError in one line for a mistake.

    A verb whose own options include `recipe` reads that file itself.
    """
    reads_itself = "recipe" in options.model_fields
    parser = _Parser(
        prog=f"python jobs/{section}.py",
        description=description,
        epilog=None if reads_itself else VALUES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if not reads_itself:
        parser.add_argument(
            "--recipe",
            type=Path,
            metavar="FILE",
            help=f"YAML file whose section '{section}' is read; flags override it",
        )
    for name, field in options.model_fields.items():
        default = (
            "required" if field.is_required() else f"default: {_shown(field.get_default(call_default_factory=True))}"
        )
        text = f"{field.description} ({', '.join([*_bounds(field), default])})".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(
                f"--{name}", action=argparse.BooleanOptionalAction, help=text, default=argparse.SUPPRESS
            )
        elif _takes_several(options, name):
            parser.add_argument(
                f"--{name}", action="append", help=text, default=argparse.SUPPRESS, metavar=name.upper()
            )
        else:
            parser.add_argument(
                f"--{name}", help=text, default=argparse.SUPPRESS, metavar=name.upper().rsplit("_", 1)[-1]
            )
    given = vars(parser.parse_args(_with_dashed_values(arguments, options)))
    recipe = None if reads_itself else given.pop("recipe")
    stated = read_recipe(recipe).get(section, {}) if recipe else {}
    return validated(options, {**stated, **given}, f"{recipe}, section {section}" if recipe else COMMAND_LINE, given)


def read_recipe(file: Path) -> dict[str, dict[str, Any]]:
    """Read the sections of a recipe file, each scalar as its text.

    Raises ValueError for a file that is not YAML, and for a section that is unknown or not a mapping.
    """
    try:
        content = load_text(file.read_bytes())
    except OSError as error:
        raise ValueError(f"recipe {file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"recipe {file}: is not YAML ({error})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"recipe {file}: is a {_kind(content)}, not a mapping of sections such as train:")
    for name, options in content.items():
        if name not in SECTIONS:
            raise ValueError(f"recipe {file}: section {name} is unknown{_nearest(name, SECTIONS)}")
        if not isinstance(options, dict):
            raise ValueError(
                f"recipe {file}: section {name} is a {_kind(options)}: "
                "each of its sections must hold options as NAME: VALUE"
            )
    return content


def load_recipe(file: Path) -> dict[str, Options]:
    """All sections of a recipe file, validated."""
    sections = {}
    for name, values in read_recipe(file).items():
        module, _, options = SECTIONS[name].partition(":")
        sections[name] = validated(getattr(import_module(module), options), values, f"{file}, section {name}")
    return sections


def validated(options: type[OptionsT], values: Mapping[str, Any], origin: str, flags: Collection[str] = ()) -> OptionsT:
    """Parse `values`, texts or typed, to options.

    origin: where the values are from, those named in `flags` excepted. Raises ValueError that names each wrong value,
    its origin and what is right.
    """

    def origin_of(name: str) -> str:
        return COMMAND_LINE if name in flags else origin

    given = {name: _value(options, name, value) for name, value in values.items()}
    if empty := [name for name, value in given.items() if value in ("", [""])]:
        reports = (f"{origin_of(name)}: {name} is empty: give a value, or none for no value" for name in empty)
        raise ValueError("; ".join(reports))
    try:
        return options.model_validate(given)
    except pydantic.ValidationError as error:
        problems = ((".".join(map(str, problem["loc"][:1])), problem) for problem in error.errors())
        reports = (_mistake(problem, options, origin_of(name)) for name, problem in problems)
        raise ValueError("; ".join(reports)) from None


def _value(options: type[Options], name: str, value: Any) -> Any:
    """The value that pydantic validates: None for `none`, a list for an option that takes several."""
    if not isinstance(value, str):
        return value
    if _takes_several(options, name):
        return [value]
    return None if value.casefold() in NO_VALUE else value


def _takes_several(options: type[Options], name: str) -> bool:
    return name in options.model_fields and get_origin(options.model_fields[name].annotation) is tuple


def _with_dashed_values(arguments: Sequence[str], options: type[Options]) -> list[str]:
    """Join values such as -6e1 to their flags: argparse takes only plain numbers as values that begin with a dash."""
    flags = {f"--{name}" for name, field in options.model_fields.items() if field.annotation is not bool}
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in flags and argument.startswith("-") and not argument.startswith("--"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _mistake(problem: Any, options: type[Options], origin: str) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            return f"{origin}: {name} is unknown{_nearest(name, options.model_fields)}"
        case "missing":
            return f"{origin}: {name} is required"
        case "value_error":
            return f"{origin}: {problem['ctx']['error']}"
        case _:
            return f"{origin}: {name} is {problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _kind(content: object) -> str:
    return "list" if isinstance(content, list) else "text"


def _bounds(field: FieldInfo) -> list[str]:
    """Name the bounds of an option for its help, such as `at least 1`."""
    names = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return [
        f"{words} {getattr(bound, name)}"
        for bound in field.metadata
        for name, words in names.items()
        if hasattr(bound, name)
    ]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as the ValueError that all other mistakes are, in one line."""

    def error(self, message: str) -> Any:
        raise ValueError(message.replace("unrecognized arguments", "unknown arguments"))
