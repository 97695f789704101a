"""Making a Python function ready to travel to a runner."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from types import ModuleType
from typing import Any

from grange.farm.errors import FunctionNotShippable
from grange.farm.source import source_of
from grange.farm.task import ShippedFunction


def ship(function: Callable[..., Any]) -> ShippedFunction:
    """Make a function ready to travel: by reference if a fresh interpreter can import it, else by value.

    What lives in a script, a notebook or inside another function goes by value, with what it refers to.
    A function behind a decorator that keeps it as __wrapped__ goes by reference.
    Errors: FunctionNotShippable, which names what stands in the way.
    """
    if not callable(function):
        raise FunctionNotShippable(repr(function), f"it is no function but a {type(function).__name__}")
    name = _name(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise FunctionNotShippable(name, "it is a generator; let it return a list")
    if inspect.iscoroutinefunction(function):
        raise FunctionNotShippable(name, "it is a coroutine (async def); only plain functions are run")
    module = getattr(_unbound(function), "__module__", None) or ""
    qualname = _reference(function, module)
    if qualname is not None:
        path = _import_path(sys.modules[module])
        if path is not None:
            return ShippedFunction(name, module, qualname, path, None, _source(function))
    return ShippedFunction(
        name,
        module,
        getattr(function, "__qualname__", name),
        _path_of_value(module),
        _pickled(function, name),
        _source(function),
    )


def by_value(function: ShippedFunction) -> ShippedFunction:
    """The function as it can travel to another computer: what is imported from a folder of the user's own
    is not there, so its whole module goes by value. Installed packages have to be there.

    Errors: FunctionNotShippable.
    """
    if function.pickle is not None or not function.path:
        return replace(function, path="")
    import cloudpickle

    found: Any = _module(function)
    top = sys.modules[function.module.partition(".")[0]]
    for part in function.qualname.split("."):
        found = getattr(found, part)
    known = top.__name__ in cloudpickle.list_registry_pickle_by_value()
    if not known:
        cloudpickle.register_pickle_by_value(top)
    try:
        return replace(function, path="", pickle=_pickled(found, function.name))
    finally:
        if not known:
            cloudpickle.unregister_pickle_by_value(top)


def _module(function: ShippedFunction) -> ModuleType:
    """The module of a function that goes by reference. Errors: FunctionNotShippable."""
    if function.module in sys.modules:
        return sys.modules[function.module]
    sys.path.insert(0, function.path)
    try:
        return importlib.import_module(function.module)
    except Exception as problem:  # whatever a user's module raises
        raise FunctionNotShippable(
            function.name, f"{function.module} cannot be imported: {problem}"
        ) from problem
    finally:
        sys.path.remove(function.path)


def _unbound(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a partial, or a partial of one, was made of."""
    while isinstance(function, partial):
        function = function.func
    return function


def _name(function: Callable[..., Any]) -> str:
    function = _unbound(function)
    return getattr(function, "__name__", None) or type(function).__name__


def _reference(function: Callable[..., Any], module: str) -> str | None:
    """The dotted name under which the function's module has it, or None."""
    qualname: str | None = getattr(function, "__qualname__", None)
    if not qualname or module in ("", "__main__", "__mp_main__") or "<" in qualname:
        return None
    found: object = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    while found is not None and found is not function:
        found = getattr(found, "__wrapped__", None)
        qualname += ".__wrapped__"
    return str(qualname) if found is function else None


def _import_path(module: ModuleType) -> str | None:
    """The folder to put on sys.path so that a fresh interpreter finds the module: "" where none is needed,
    None where it would not find it at all."""
    spec = module.__spec__
    if spec is None:
        return None
    if spec.origin in ("built-in", "frozen"):
        return ""
    root = _root(module)
    if root is None:
        return None
    for entry in sys.path:
        if os.path.realpath(entry or ".") == os.path.realpath(root):
            return "" if _is_installed(root) else os.path.abspath(entry or ".")
    top = module.__name__.partition(".")[0]
    for finder in sys.meta_path:
        found = finder.find_spec(top, None) if hasattr(finder, "find_spec") else None
        if found is not None:
            # Found by a finder of an editable installation, which every interpreter has.
            return "" if found.origin == getattr(sys.modules.get(top), "__file__", None) else None
    return None


def _root(module: ModuleType) -> str | None:
    """The folder that holds the module's outermost package."""
    file = getattr(module, "__file__", None)
    if file is None:
        return None
    levels: int = module.__name__.count(".") + (os.path.basename(file).startswith("__init__."))
    root: str = os.path.dirname(os.path.abspath(file))
    for _ in range(levels):
        root = os.path.dirname(root)
    return root


def _is_installed(root: str) -> bool:
    return os.path.realpath(root) in _installed_places()


@cache
def _installed_places() -> frozenset[str]:
    """Where this interpreter has what is installed; finding out takes a millisecond."""
    places = [
        os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ]
    return frozenset([*places, *(os.path.join(place, "lib-dynload") for place in places)])


def _path_of_value(module: str) -> str:
    """Where a function that goes by value finds what it imports: beside its own, or its script."""
    if module not in ("", "__main__", "__mp_main__") and module in sys.modules:
        path = _import_path(sys.modules[module])
        if path is not None:
            return path
    return os.path.abspath(sys.path[0] or ".") if sys.path else ""


def _dumps(value: object) -> bytes:
    """cloudpickle's dumps, but open files do not travel: it would send their whole content unasked."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, io.IOBase) and obj not in (sys.stdout, sys.stderr):
                raise TypeError("open files stay where they are")
            return super().reducer_override(obj)

    file = io.BytesIO()
    Pickler(file, 5).dump(value)
    return file.getvalue()


def _pickled(function: Callable[..., Any], name: str) -> bytes:
    try:
        return _dumps(function)
    except Exception as problem:
        raise FunctionNotShippable(name, _culprit(function, problem)) from problem


def _culprit(function: Callable[..., Any], problem: Exception) -> str:
    """What of the things that a function refers to cannot be pickled."""
    for what, value in _parts(function):
        try:
            _dumps(value)
        except Exception as reason:
            kind = type(value)
            shown = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
            return f"{what} is a {shown}, which cannot be pickled ({reason})"
    return f"it cannot be pickled: {problem}"


def _parts(function: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(function, partial):
        for number, value in enumerate(function.args):
            yield f"its bound argument {number}", value
        for name, value in function.keywords.items():
            yield f"its bound argument {name!r}", value
        yield from _parts(function.func)
        return
    if inspect.ismethod(function):
        yield "the object that it is a method of", function.__self__
        return
    code = getattr(function, "__code__", None)
    if code is None:
        return
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"its variable {name!r}", cell.cell_contents
        except ValueError:
            continue
    for name in code.co_names:
        if name in function.__globals__:
            yield f"the global variable {name!r}", function.__globals__[name]
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"the default of {name!r}", value
    for value in function.__defaults__ or ():
        yield "the default of an argument", value


def _source(function: Callable[..., Any]) -> str:
    return textwrap.dedent(source_of(_unbound(function)))
