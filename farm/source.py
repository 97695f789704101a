"""The source text of functions and classes."""

from __future__ import annotations

import inspect
from contextlib import suppress
from weakref import WeakKeyDictionary

# Reading it takes a millisecond, of a class in a long module far more; and the file may change meanwhile,
# while what was loaded from it does not.
_seen: WeakKeyDictionary[object, str] = WeakKeyDictionary()


def source_of(code: object) -> str:
    """The source text of a function or class, as the file has it, "" where there is none to be had."""
    # TypeError: of what cannot be remembered
    with suppress(KeyError, TypeError):
        return _seen[code]
    try:
        text = inspect.getsource(code)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""
    with suppress(TypeError):
        _seen[code] = text
    return text
