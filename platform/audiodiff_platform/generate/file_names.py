"""Names of the files of loops, from a template.

The values of all fields but `id` have codes of which none begins or ends with another. Loops of different ids, or of
different seeds, therefore have different names, whatever was measured of their audio.
"""

import string
import unicodedata
from dataclasses import dataclass

from audiodiff_core.loops.key import Key

MAX_ID_BYTES = 200
MAX_NAME_BYTES = 215
"""Maximum size of a name without its extension. Names of temporary files are 40 bytes longer, and have at most 255."""
MIN_ID_BYTES = 120
"""Size of ids that every template leaves room for: that of variations of a folder."""

FIELD_BYTES = {"seed": 10, "bpm": len("no-tempo"), "key": len("Gsharp-minor")}
"""Largest sizes of the values of fields."""
ID = "id"
NO_KEY = Key(None, None, 0.0)


@dataclass(frozen=True)
class NameTemplate:
    """Template of the names of files, such as `{bpm}-{key}-{id}`.

    Args:
        text: The template, with the fields id, seed, bpm and key in braces.
        parts: Texts, each with the field that follows or None.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> "NameTemplate":
        """Read a template.

        Raises:
            ValueError: The template has unknown fields or no name of a file, or is too long.
        """
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"name {text}: {error}, double the braces that are no field") from error
        known = ", ".join(f"{{{field}}}" for field in (ID, *FIELD_BYTES))
        for _, field, form, conversion in parsed:
            if field is not None and (form or conversion):
                raise ValueError(f"name {text}: the field {field} has a format, omit it")
            if field is not None and field not in (ID, *FIELD_BYTES):
                raise ValueError(f"name {text}: the field {{{field}}} is unknown, use {known}")
        template = cls(text, tuple((literal, field) for literal, field, _, _ in parsed))
        if (problem := name_problem(template.name("id", 0, None, NO_KEY))) is not None:
            raise ValueError(f"name {text}: {problem}")
        if template.max_id_bytes < MIN_ID_BYTES:
            raise ValueError(f"name {text}: leaves less than {MIN_ID_BYTES} bytes for an id, shorten it")
        return template

    @property
    def fields(self) -> frozenset[str]:
        """The fields of the template."""
        return frozenset(field for _, field in self.parts if field is not None)

    @property
    def max_id_bytes(self) -> int:
        """Maximum size of an id, so that the names are not too long."""
        ids = sum(field == ID for _, field in self.parts)
        others = sum(len(literal.encode()) + FIELD_BYTES.get(field or "", 0) for literal, field in self.parts)
        return min(MAX_ID_BYTES, (MAX_NAME_BYTES - others) // max(1, ids))

    def name(self, loop_id: str, seed: int, bpm: float | None, key: Key) -> str:
        """Return the name of a loop without an extension.

        Args:
            loop_id: Id of the loop.
            seed: Seed of the loop.
            bpm: Tempo in beats per minute below 1000, or None.
            key: Key of the loop.
        """
        values = {
            ID: loop_id,
            "seed": f"{seed:010d}",
            "bpm": "no-tempo" if bpm is None else f"{round(bpm):03d}bpm",
            "key": "no-key" if key.name is None else spelled_key(key.name),
        }
        return "".join(literal + ("" if field is None else values[field]) for literal, field in self.parts)


def spelled_key(name: str) -> str:
    """Return the name of a key, such as `F# minor`, as part of a name of a file: `Fsharp-minor`."""
    return name.replace("#", "sharp").replace(" ", "-")


def name_problem(name: str, max_bytes: int = MAX_ID_BYTES) -> str | None:
    """Return why a text cannot be the name of a file, or None."""
    size = len(name.encode(errors="replace"))
    if not 1 <= size <= max_bytes:
        return f"has {size} bytes, use 1 to {max_bytes}"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        return f"{name!r} holds control characters"
    if "/" in name or "\\" in name or name.startswith("."):
        return f"{name} is not a file name: omit slashes and a leading dot"
    return None
