"""A node in a few words: for a line of a table, for a label in a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grange.core.formula import formula

#: What stands for attributes that were too large to be fetched.
TOO_LARGE = "(large)"


def type_name(node_type: str) -> str:
    """The short name of a type: "Int" for data.core.int.Int., "calcfunction" for …CalcFunctionNode."""
    parts = node_type.strip(".").split(".")
    if parts[0] == "process" and len(parts) > 2:
        return parts[-2]
    return parts[-1] or "data"


def short_value(node_type: str, attributes: Mapping[str, Any] | None, width: int = 40) -> str:
    """What a data node holds, in at most `width` characters on one line.

    A number to eight digits, a text in quotes, the formula of a structure, the shapes of arrays; of what
    is not known, its attributes.
    """
    if attributes is None:
        return TOO_LARGE
    return clipped(_value(type_name(node_type), attributes), width)


def clipped(text: str, width: int) -> str:
    """The text on one line, shortened to the width; what cannot be printed becomes a blank or a mark."""
    line = "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def plain(value: object) -> str:
    """A value of attributes as text, long lists and dictionaries cut after a dozen entries."""
    if isinstance(value, float):
        return f"{value:.8g}"
    if isinstance(value, str):
        return f'"{value[:200]}"'
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    # no label is longer than what the first few entries fill
    if isinstance(value, dict):
        inside = ", ".join(f"{key}: {plain(item)}" for key, item in list(value.items())[:12])
        return "{" + inside + (", …" if len(value) > 12 else "") + "}"
    if isinstance(value, list):
        count = f" … {len(value)} items" if len(value) > 12 else ""
        return "[" + ", ".join(plain(item) for item in value[:12]) + count + "]"
    return str(value)


def _value(name: str, attributes: Mapping[str, Any]) -> str:
    if name == "StructureData" or {"kinds", "sites"} <= attributes.keys():
        sites = len(attributes.get("sites", ()))
        return f"{formula(attributes)} · {sites} site{'' if sites == 1 else 's'}"
    shapes = {key.partition("|")[2]: shape for key, shape in attributes.items() if key.startswith("array|")}
    if shapes:
        return ", ".join(f"{key} {_shape(shape)}" for key, shape in sorted(shapes.items()))
    for key in ("filename", "filepath_executable", "filepath_files", "remote_path"):
        if isinstance(attributes.get(key), str):
            return str(attributes[key])
    if isinstance(attributes.get("list"), list):
        return plain(attributes["list"])
    if "name" in attributes and "identifier" in attributes:
        return str(attributes["name"])
    if name != "Dict" and "value" in attributes:
        return plain(attributes["value"])
    return plain(dict(attributes)) if attributes else ""


def _shape(shape: object) -> str:
    if isinstance(shape, list):
        return "×".join(map(str, shape)) or "scalar"
    return str(shape)
