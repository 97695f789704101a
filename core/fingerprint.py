"""What determines the result of a piece of code, as one hash: the base of caching.

Two functions are equal when their source, their defaults, and all that they reach in their own module
(helpers, constants, closed-over values) are equal. What they import from elsewhere counts by name: a
library's new version is announced by the function's attribute `version`.
"""

from __future__ import annotations

import hashlib
import inspect
import pickle
import types
from collections.abc import Iterator


def fingerprint(code: object) -> bytes:
    """The SHA-256 (32 bytes) of a function or class.

    Equal in every process that runs the same source, whatever the order in which sets are walked.
    """
    digest = hashlib.sha256()
    for part in _parts(code, getattr(code, "__module__", None), set()):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def source_of(code: object) -> str:
    """The source text of a function or class, "" where there is none to be had."""
    try:
        return inspect.getsource(code)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""


def _parts(value: object, home: str | None, seen: set[int]) -> Iterator[str]:
    """The texts that make up the fingerprint; each function and class of the home module once."""
    if id(value) in seen:
        return
    if isinstance(value, types.FunctionType):
        seen.add(id(value))
        yield from _function_parts(value, home, seen)
    elif isinstance(value, type) and value.__module__ == home:
        seen.add(id(value))
        yield f"class {value.__qualname__} {source_of(value)}"
        yield f"version {getattr(value, 'version', '')!r}"
        for name in sorted(vars(value)):
            member = vars(value)[name]
            member = getattr(member, "__func__", member)
            if isinstance(member, types.FunctionType):
                yield from _function_parts(member, home, seen)
    elif isinstance(value, types.ModuleType):
        yield f"module {value.__name__}"
    elif isinstance(value, type) or callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        yield f"name {getattr(value, '__module__', '')}.{name}"
    else:
        yield _value_part(value)


def _function_parts(function: types.FunctionType, home: str | None, seen: set[int]) -> Iterator[str]:
    yield f"function {function.__qualname__}"
    yield f"version {getattr(function, 'version', '')!r}"
    if function.__module__ != home:
        yield f"from {function.__module__}"
        return
    source = source_of(function)
    yield source or function.__code__.co_code.hex() + repr(_plain_constants(function.__code__))
    yield from _parts(function.__defaults__, home, seen)
    yield from _parts(function.__kwdefaults__, home, seen)
    for cell in function.__closure__ or ():
        try:
            yield from _parts(cell.cell_contents, home, seen)
        except ValueError:  # a cell that is not filled yet
            yield "empty cell"
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            yield f"global {name}"
            yield from _parts(function.__globals__[name], home, seen)


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _plain_constants(code: types.CodeType) -> list[object]:
    return [constant for constant in code.co_consts if not isinstance(constant, types.CodeType)]


def _value_part(value: object) -> str:
    """A value as a text that is the same in every process."""
    if isinstance(value, set | frozenset):
        return "set " + " ".join(sorted(_value_part(item) for item in value))
    if isinstance(value, dict):
        return "dict " + " ".join(sorted(f"{_value_part(k)}={_value_part(v)}" for k, v in value.items()))
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} " + " ".join(_value_part(item) for item in value)
    if value is None or isinstance(value, int | float | str | bytes | bool | complex):
        return repr(value)
    try:
        return "pickle " + hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # whatever a foreign __reduce__ raises: such a value counts by its type
        return f"object {type(value).__module__}.{type(value).__qualname__}"
