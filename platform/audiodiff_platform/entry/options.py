"""Options of the verbs, from a recipe file and from command-line flags, which override the recipe.

A verb is one of the jobs: prepare, train, generate, and so on. A recipe is a YAML file (`jobs/recipes/NAME.yaml`) with
one section for each verb.

Each verb declares its options as a subclass of `Options`. Names, defaults and ranges are stated only in this subclass.
Recipes and flags both supply text, and `validated` parses the text of both. A value therefore has the same meaning in a
recipe and on the command line.
"""

import argparse
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
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
    "serve": "audiodiff_platform.serve.options:ServeOptions",
}
"""The options class of each section, as MODULE:CLASS. The modules load Ray, so they are imported on use."""

NO_VALUE = frozenset({"none", "null", "~"})
"""Values that unset an option, in any combination of upper and lower case."""

COMMAND_LINE = "command line"
VALUES_HELP = (
    "The value none unsets an option. A recipe sets options by the same names, and sets switches to true or false."
)


class Options(pydantic.BaseModel):
    """Base class for the options of a verb. Instances are frozen, and unknown keys are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class OutputOptions(Options):
    """Options of a verb that holds the lease of its output folder while it runs."""

    take_over: bool = pydantic.Field(
        False,
        description="on an object store: take over the output folder of a dead job at once, "
        "without waiting for its lease to expire",
    )


OptionsT = TypeVar("OptionsT", bound=Options)


def from_command_line(options: type[OptionsT], section: str, arguments: Sequence[str], description: str) -> OptionsT:
    """Parse command-line arguments, and the recipe that they name, into options.

    Args:
        options: The class to parse into. A verb whose options include `recipe` reads the recipe itself.
        section: The recipe section of the verb.
        arguments: The arguments after the program name.
        description: The text at the top of `--help`.

    Raises:
        ValueError: A flag, a value or the recipe is wrong. The message is one line.
    """
    verb_reads_recipe = "recipe" in options.model_fields
    parser = _Parser(
        prog=f"python jobs/{section}.py",
        description=description,
        epilog=None if verb_reads_recipe else VALUES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if not verb_reads_recipe:
        parser.add_argument(
            "--recipe",
            type=Path,
            action="append",
            default=argparse.SUPPRESS,
            metavar="FILE",
            help=f"YAML file with a section '{section}'; flags override its values",
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
        else:
            value = name.upper() if _is_repeatable(options, name) else name.upper().rsplit("_", 1)[-1]
            parser.add_argument(f"--{name}", action="append", help=text, default=argparse.SUPPRESS, metavar=value)
    parsed, unknown = parser.parse_known_args(_with_dashed_values(arguments, options))
    if unknown:
        flag = next((argument for argument in unknown if argument.startswith("--")), None)
        known = [f"--{name}" for name in (*options.model_fields, "recipe")]
        hint = _nearest(flag.partition("=")[0], known) if flag else ""
        raise ValueError(f"unknown arguments: {' '.join(unknown)}{hint}")
    flags = {name: _flag_value(options, name, value) for name, value in vars(parsed).items()}
    recipe = None if verb_reads_recipe else flags.pop("recipe", None)
    recipe_values = read_recipe(recipe).get(section, {}) if recipe else {}
    return validated(
        options, {**recipe_values, **flags}, f"{recipe}, section {section}" if recipe else COMMAND_LINE, flags
    )


def read_recipe(file: Path) -> dict[str, dict[str, Any]]:
    """Read the sections of a recipe file without parsing values: every scalar stays text.

    Raises:
        ValueError: The file cannot be read or is not YAML, or a section is unknown or not a mapping.
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
        raise ValueError(f"recipe {file}: is a {_kind(content)}, must be a mapping of sections such as train:")
    for name, options in content.items():
        if name not in SECTIONS:
            raise ValueError(f"recipe {file}: section {name} is unknown{_nearest(name, SECTIONS)}")
        if not isinstance(options, dict):
            raise ValueError(
                f"recipe {file}: section {name} is a {_kind(options)}: must be a mapping of options as NAME: VALUE"
            )
    return content


def load_recipe(file: Path) -> dict[str, Options]:
    """Read and validate all sections of a recipe file.

    Raises:
        ValueError: The file, a section or a value is wrong. The message is one line.
    """
    sections = {}
    for name, values in read_recipe(file).items():
        module, _, options = SECTIONS[name].partition(":")
        sections[name] = validated(getattr(import_module(module), options), values, f"{file}, section {name}")
    return sections


def validated(options: type[OptionsT], values: Mapping[str, Any], origin: str, flags: Collection[str] = ()) -> OptionsT:
    """Parse values into options.

    Args:
        options: The class to parse into.
        values: The values by option name, as text or already typed.
        origin: The source of the values for error messages, such as a file name.
        flags: The names of the values that come from the command line instead of `origin`.

    Raises:
        ValueError: A value is wrong. The one-line message names every wrong value, its origin and what is valid.
    """

    def origin_of(name: str) -> str:
        return COMMAND_LINE if name in flags else origin

    parsed = {name: _value(options, name, value) for name, value in values.items()}
    if empty := [name for name, value in parsed.items() if value in ("", [""])]:
        reports = (f"{origin_of(name)}: {name} is empty: set a value, or none to unset the option" for name in empty)
        raise ValueError("; ".join(reports))
    try:
        return options.model_validate(parsed)
    except pydantic.ValidationError as error:
        problems = ((".".join(map(str, problem["loc"][:1])), problem) for problem in error.errors())
        reports = (_mistake(problem, options, origin_of(name)) for name, problem in problems)
        raise ValueError("; ".join(reports)) from None


def _value(options: type[Options], name: str, value: Any) -> Any:
    """Convert a text for pydantic: `none` to None, and the text of a repeatable option to a list."""
    if not isinstance(value, str):
        return value
    if _is_repeatable(options, name):
        return [value]
    return None if value.casefold() in NO_VALUE else value


def _flag_value(options: type[Options], name: str, value: Any) -> Any:
    """Return the value of a flag. Raise ValueError if a flag that takes one value has several."""
    if not isinstance(value, list) or _is_repeatable(options, name):
        return value
    if len(value) > 1:
        values = ", ".join(map(str, value))
        raise ValueError(f"{COMMAND_LINE}: {name} is repeated, with the values {values}: it takes one value")
    return value[0]


def _is_repeatable(options: type[Options], name: str) -> bool:
    return name in options.model_fields and get_origin(options.model_fields[name].annotation) is tuple


def _with_dashed_values(arguments: Sequence[str], options: type[Options]) -> list[str]:
    """Join values such as -6e1 to their flags, because argparse takes them for flags."""
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


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else f"; valid names are {', '.join(known)}"


def _kind(content: object) -> str:
    return "list" if isinstance(content, list) else "text"


def _bounds(field: FieldInfo) -> list[str]:
    """Return the bounds of an option as words for its help, such as "at least 1"."""
    names = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return [
        f"{words} {getattr(bound, name)}"
        for bound in field.metadata
        for name, words in names.items()
        if hasattr(bound, name)
    ]


def _shown(value: Any) -> str:
    return "none" if value in (None, "") else str(value)


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises ValueError instead of exiting."""

    def error(self, message: str) -> Any:
        raise ValueError(message)
