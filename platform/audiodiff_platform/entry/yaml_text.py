"""YAML loader that keeps every scalar as text and guesses no types.

YAML 1.1 reads `2:8` as 128, `no` as false, `010` as 8 and `1e-4` as a string. This loader returns each scalar as
written, quoted or not, and the code that uses the value decides its type. A missing value (`key:`) is the text `null`.
Anchors, aliases and merge keys (`<<`) work.
"""

import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_MISSING_VALUE = "null"


def load_text(content: bytes) -> Any:
    """Load one YAML document in UTF-8 or UTF-16.

    Returns:
        Nested dicts, lists and texts, or None for an empty document.

    Raises:
        ValueError: `content` is not YAML, repeats a key in a mapping, or has a tag other than text, list and mapping.
            The message is one line.
    """
    try:
        loader = _TextLoader(content)
        try:
            document = loader.get_single_node()
            return loader.construct_document(document) if document is not None and document.value else None
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{str(error).splitlines()[0]} at position {error.position}: save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{position}{error.problem}") from None
    except RecursionError:
        raise ValueError("its lists and mappings are nested too deeply") from None


class _TextLoader(yaml.SafeLoader):
    """A loader that constructs only texts, lists and mappings."""

    # PyYAML types these class attributes as attributes of instances, which ClassVar cannot override.
    yaml_implicit_resolvers = {"<": [(f"{_TAG}merge", re.compile("^<<$"))]}  # noqa: RUF012

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, and raise ConstructorError for a repeated key, which SafeLoader would overwrite."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} is repeated", key.start_mark)
            keys.add(key.value)
        return node

    def construct_text(self, node: Any) -> str:
        """Return the text of a scalar, or `null` for an unquoted empty scalar."""
        return str(self.construct_scalar(node)) or ("" if node.style else _MISSING_VALUE)

    yaml_constructors = {  # noqa: RUF012
        **dict.fromkeys((f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "merge")), construct_text),
        f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
        f"{_TAG}map": yaml.SafeLoader.construct_yaml_map,
        None: yaml.SafeLoader.construct_undefined,
    }
