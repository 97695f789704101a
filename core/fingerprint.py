"""What determines the result of a piece of code, as one hash: the base of caching.

Two functions are equal when their source, their defaults, and all that they reach in their own module
(helpers, constants, closed-over values) are equal. What they import from elsewhere counts by name: a
library's new version is announced by the function's attribute `version`.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import types
from collections.abc import Iterator

from grange.farm.source import source_of

#: Lists of these alone, however long, are one text.
_PLAIN = frozenset({int, float, str, bool, bytes, type(None)})


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


def _parts(value: object, home: str | None, seen: set[int]) -> Iterator[str]:
    """The texts that make up the fingerprint; each function and class of the home module once."""
    if id(value) in seen:
        return
    if isinstance(value, types.FunctionType):
        seen.add(id(value))
        yield from _function_parts(value, home, seen)
    elif isinstance(value, type):
        seen.add(id(value))
        yield from _class_parts(value, home, seen)
    elif isinstance(value, types.ModuleType):
        yield f"module {value.__name__}"
    elif isinstance(value, functools.partial):
        yield "partial"
        for part in (value.func, value.args, value.keywords):
            yield from _parts(part, home, seen)
    elif isinstance(value, types.MethodType):
        yield "method"
        yield from _parts(value.__func__, home, seen)
        yield from _parts(value.__self__, home, seen)
    elif isinstance(getattr(value, "__wrapped__", None), types.FunctionType):
        yield f"wrapped by {type(value).__module__}.{type(value).__qualname__}"
        yield from _parts(value.__wrapped__, home, seen)  # type: ignore[attr-defined]
    elif isinstance(value, types.BuiltinFunctionType):
        yield f"name {value.__module__}.{value.__qualname__}"
    elif isinstance(value, set | frozenset):
        yield "set " + " ".join(sorted("\n".join(_parts(item, home, seen)) for item in value))
    elif isinstance(value, dict):
        yield f"dict {len(value)}"
        for key in sorted(value, key=_value_part):
            yield from _parts(key, home, seen)
            yield from _parts(value[key], home, seen)
    elif isinstance(value, list | tuple) and not all(type(item) in _PLAIN for item in value):
        yield f"{type(value).__name__} {len(value)}"
        for item in value:
            yield from _parts(item, home, seen)
    elif type(value).__module__ == home and hasattr(value, "__dict__"):
        seen.add(id(value))
        yield from _parts(type(value), home, seen)
        yield from _parts(vars(value), home, seen)
    else:
        yield _value_part(value)


def _class_parts(value: type, home: str | None, seen: set[int]) -> Iterator[str]:
    if value.__module__ != home:
        yield f"name {value.__module__}.{value.__qualname__}"
        yield f"version {getattr(value, 'version', '')!r}"
        return
    yield f"class {value.__qualname__} {source_of(value)}"
    yield f"version {getattr(value, 'version', '')!r}"
    for base in value.__bases__:
        yield from _parts(base, home, seen)
    for name in sorted(vars(value)):
        member = vars(value)[name]
        if isinstance(member, property):
            member = member.fget
        member = getattr(member, "__func__", member)
        if isinstance(member, types.FunctionType):
            yield from _parts(member, home, seen)


def _function_parts(function: types.FunctionType, home: str | None, seen: set[int]) -> Iterator[str]:
    yield f"function {function.__qualname__}"
    yield f"version {getattr(function, 'version', '')!r}"
    if function.__module__ != home:
        yield f"from {function.__module__}"
        return
    source = source_of(function)
    yield source
    if not source or function.__name__ == "<lambda>":  # the source of a lambda is that of its whole line
        yield from _code_parts(function.__code__)
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


def _code_parts(code: types.CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names!r} {code.co_varnames!r} {code.co_freevars!r}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_parts(constant)
        else:
            yield _value_part(constant)


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


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
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return f"name {value.__module__}.{value.__qualname__}"
    try:
        return "pickle " + hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # whatever a foreign __reduce__ raises: such a value counts by its type
        return f"object {type(value).__module__}.{type(value).__qualname__}"
