"""Stashes as commands have them, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grange.core.errors import InputInvalid
from grange.core.json_value import checked_text
from grange.farm.stash import STASH_MODES, Stash


def checked_stash(stash: object, where: str) -> Stash | None:
    """A stash that the farm can make. Errors: InputInvalid."""
    if stash is None:
        return None
    if not isinstance(stash, Stash):
        raise InputInvalid(where, stash, "a gr.Stash(paths, to)")
    if isinstance(stash.paths, str) or not stash.paths:
        raise InputInvalid(f"{where}: paths", stash.paths, "a list of at least one glob pattern")
    for path in stash.paths:
        if not isinstance(path, str) or any(part in ("", ".", "..") for part in path.split("/")):
            raise InputInvalid(f"{where}: paths", path, "patterns inside the program's directory")
        checked_text(path, f"{where}: paths")
    if not isinstance(stash.to, str) or stash.to[:1] not in ("/", "~", "$"):
        raise InputInvalid(f"{where}: to", stash.to, 'an absolute path there, as "/scratch/me" or "$SCRATCH"')
    checked_text(stash.to, f"{where}: to")
    if stash.mode not in STASH_MODES:
        raise InputInvalid(f"{where}: mode", stash.mode, f"one of {', '.join(STASH_MODES)}")
    return Stash(tuple(stash.paths), stash.to, stash.mode)


def attribute_of(stash: Stash) -> dict[str, Any]:
    """What a process node says of it, under AiiDA's names."""
    return {
        "source_list": list(stash.paths),
        "target_base": stash.to,
        "stash_mode": aiida_mode(stash.mode),
    }


def aiida_mode(mode: str) -> str:
    """What AiiDA calls a mode."""
    return mode if mode == "copy" else f"compress.{mode}"


def from_attribute(attribute: Mapping[str, Any]) -> Stash:
    """The stash again, from what attribute_of() gave."""
    mode = str(attribute["stash_mode"]).removeprefix("compress.")
    return Stash(tuple(attribute["source_list"]), attribute["target_base"], mode)  # type: ignore[arg-type]
