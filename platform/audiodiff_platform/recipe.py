"""Options of the verbs, from a recipe file (`jobs/recipes/NAME.yaml`, a section a verb) and the flags that override it.

Each verb states its options beside the code that obeys them, as a subclass of `Options`; names, defaults and ranges exist nowhere else.
"""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, get_origin

import pydantic
import yaml

SECTIONS: Mapping[str, str] = {
    "prepare": "audiodiff_platform.prepare:PrepareOptions",
    "train": "audiodiff_platform.train_options:TrainOptions",
    "train_vae": "audiodiff_platform.train_vae:TrainVaeOptions",
    "encode": "audiodiff_platform.encode:EncodeOptions",
    "generate": "audiodiff_platform.generate:GenerateOptions",
    "evaluate": "audiodiff_platform.evaluate:EvaluateOptions",
    "serve": "audiodiff_platform.serve:ServeOptions",
}


class Options(pydantic.BaseModel):
    """What a verb can be told. Frozen; an unknown key is an error that names the nearest known one."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


OptionsT = TypeVar("OptionsT", bound=Options)


def from_command_line(options: type[OptionsT], section: str, arguments: Sequence[str], description: str) -> OptionsT:
    """The options that `arguments` and the recipe they may name ask for; raises ValueError in one line a mistake.

    A verb whose own options include `recipe` reads that file itself.
    """
    parser = _Parser(prog=f"python jobs/{section}.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    reads_itself = "recipe" in options.model_fields
    if not reads_itself:
        parser.add_argument("--recipe", type=Path, metavar="FILE", help=f"YAML file whose section '{section}' is read; flags override it")
    for name, field in options.model_fields.items():
        default = "required" if field.is_required() else f"default: {_shown(field.get_default(call_default_factory=True))}"
        text = f"{field.description} ({default})".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text, default=argparse.SUPPRESS)
        elif get_origin(field.annotation) is tuple:
            parser.add_argument(f"--{name}", action="append", help=text, default=argparse.SUPPRESS, metavar=name.upper())
        else:
            parser.add_argument(f"--{name}", help=text, default=argparse.SUPPRESS, metavar=name.upper().rsplit("_", 1)[-1])
    given = vars(parser.parse_args(arguments))
    recipe = None if reads_itself else given.pop("recipe")
    stated = read_recipe(recipe).get(section, {}) if recipe else {}
    return validated(options, {**stated, **given}, f"{recipe}, section {section}" if recipe else "command line")


def read_recipe(file: Path) -> dict[str, dict[str, Any]]:
    """The sections of a recipe file as written; raises ValueError where a section is unknown or not a mapping."""
    try:
        content = yaml.safe_load(file.read_text()) or {}
    except OSError as error:
        raise ValueError(f"recipe {file}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {file}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise ValueError(f"recipe {file}: each of its sections must hold options")
    for name in content:
        if name not in SECTIONS:
            raise ValueError(f"recipe {file}: section {name} is unknown{_nearest(str(name), SECTIONS)}")
    return content


def load_recipe(file: Path) -> dict[str, Options]:
    """All sections of a recipe file, validated."""
    sections = {}
    for name, values in read_recipe(file).items():
        module, _, options = SECTIONS[name].partition(":")
        sections[name] = validated(getattr(import_module(module), options), values, f"{file}, section {name}")
    return sections


def validated(options: type[OptionsT], values: Mapping[str, Any], origin: str) -> OptionsT:
    """`values` as options; raises ValueError that names each wrong one, its value and what is right."""
    try:
        return options.model_validate(values)
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(_mistake(problem, options, origin) for problem in error.errors())) from None


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


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as the ValueError that all other mistakes are, in one line."""

    def error(self, message: str) -> Any:
        raise ValueError(message.replace("unrecognized arguments", "unknown arguments"))
