"""Ports: what a function or class can be given, and what it has to be."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional
from weakref import WeakKeyDictionary

from grange.core.data.convert import described, to_data
from grange.core.errors import InputInvalid, InputMissing
from grange.core.link import LABEL_LIMIT, is_label
from grange.core.node import Data

#: Stands for "no default"; None is one.
REQUIRED: Any = inspect.Parameter.empty
_ONE_WORD = re.compile(r"[A-Za-z0-9]+(?:_[A-Za-z0-9]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output. annotation None: any value that can be recorded."""

    name: str
    annotation: object | None = None
    default: Any = field(default=REQUIRED)

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is REQUIRED


class Ports(Mapping[str, Port]):
    """The ports of a function or class, by name, in the order in which they were written.

    dynamic: what ports that are not named take (those of **kwargs); None where there are none.
    """

    __slots__ = ("__weakref__", "_ports", "dynamic")

    def __init__(self, ports: Iterable[Port], dynamic: Port | None = None) -> None:
        self._ports = {port.name: port for port in ports}
        self.dynamic = dynamic

    @classmethod
    def anything(cls) -> Ports:
        """No named ports; takes every name and value."""
        return cls((), Port("**"))

    @classmethod
    def of_names(cls, names: Iterable[str]) -> Ports:
        """Ports that have to be given something, whatever it is.

        Errors: InputInvalid for a name that cannot label a link.
        """
        return cls(Port(checked_name(name, "ports")) for name in names)

    def __getitem__(self, name: str) -> Port:
        return self._ports[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ports)

    def __len__(self) -> int:
        return len(self._ports)

    def require(self, given: Collection[str], where: str) -> None:
        """Check that every required port is among those given, and every one given is a port.

        Errors: InputMissing; InputInvalid for an unknown port, which names the nearest one.
        """
        for name in given:
            port_of(self, name, where)
        missing = [name for name, port in self._ports.items() if port.required and name not in given]
        if missing:
            expected = _described(self._ports[missing[0]])
            if len(missing) > 1:
                expected += f" (missing too: {', '.join(missing[1:])})"
            raise InputMissing(f"{where}: {missing[0]}", expected)

    def defaults(self) -> dict[str, Any]:
        """The plain values of the ports that need not be given."""
        return {name: port.default for name, port in self._ports.items() if not port.required}


def _described(port: Port) -> str:
    return "a value" if port.annotation is None else described(port.annotation)


def port_of(ports: Ports, name: str, where: str) -> Port:
    """The port of a name.

    Errors: InputInvalid, with the name that was probably meant, or all there are.
    """
    port = ports.get(name)
    if port is not None:
        return port
    if ports.dynamic is not None:
        return Port(checked_name(name, where), ports.dynamic.annotation)
    near = difflib.get_close_matches(name, list(ports), n=1, cutoff=0.5)
    said = f"did you mean {near[0]!r}? " if near else ""
    raise InputInvalid(
        f"{where}: {name}", name, f"one of its ports ({said}it has {', '.join(ports) or 'none'})"
    )


def checked_name(name: str, where: str) -> str:
    """A name that can label a link, and in which "__" does not hide another level.

    Errors: InputInvalid.
    """
    if not is_label(name) or "__" in name:
        raise InputInvalid(
            f"{where}: {name}",
            name,
            "a name of ASCII letters, digits and single underscores, a letter first, no underscore last, "
            f"at most {LABEL_LIMIT} of them (it becomes the label of a link)",
        )
    return name


# ---------------------------------------------------------------- reading them


_of_function: WeakKeyDictionary[Callable[..., object], Ports] = WeakKeyDictionary()


def ports_of_function(function: Callable[..., object]) -> Ports:
    """The ports of a function: its parameters. **kwargs take any name; read once for each function.

    Errors: InputInvalid for *args, positional-only parameters, and names that cannot label a link.
    """
    try:
        found = _of_function.get(function)
    except TypeError:  # an object that cannot be referred to weakly
        return _read_function(function)
    if found is None:
        found = _of_function[function] = _read_function(function)
    return found


def _read_function(function: Callable[..., object]) -> Ports:
    label = getattr(function, "__qualname__", repr(function))
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise InputInvalid(
            label, function, f"a Python function whose signature can be read ({error})"
        ) from None
    names = dict(inspect.getclosurevars(function).nonlocals) if inspect.isfunction(function) else {}
    scope = {**getattr(function, "__globals__", {}), **names}
    ports = []
    dynamic = None
    for name, parameter in signature.parameters.items():
        annotation = _resolved(parameter.annotation, scope)
        if parameter.kind is parameter.VAR_KEYWORD:
            dynamic = Port("**", annotation)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            raise InputInvalid(f"{label}: *{name}", function, "named parameters: inputs are recorded by name")
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise InputInvalid(f"{label}: {name}", function, "parameters that can be given by name (no '/')")
        else:
            ports.append(_port(name, annotation, parameter.default, label))
    return Ports(ports, dynamic)


_of_class: WeakKeyDictionary[type, Ports] = WeakKeyDictionary()


def ports_of_class(cls: type) -> Ports:
    """The ports of a class body of annotations; those of base classes first; a value is a default.

        class Inputs:
            structure: gr.Structure
            charge: int = 0

    Errors: InputInvalid for a name that cannot label a link, or a value without annotation.
    """
    found = _of_class.get(cls)
    if found is None:
        found = _of_class[cls] = _read_class(cls)
    return found


def _read_class(cls: type) -> Ports:
    ports: dict[str, Port] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = vars(base)
        annotations = body.get("__annotations__", {})
        scope = {**vars(sys.modules.get(base.__module__, base)), **body}
        label = base.__qualname__
        for name, annotation in annotations.items():
            default = body.get(name, REQUIRED)
            ports[name] = _port(name, _resolved(annotation, scope), default, label)
        for name, value in body.items():
            if not name.startswith("_") and name not in ports and not callable(value):
                raise InputInvalid(
                    f"{label}: {name}", value, f"a type, as in `{name}: {type(value).__name__} = …`"
                )
    return Ports(ports.values())


def _port(name: str, annotation: Any, default: Any, where: str) -> Port:
    """A port; one with the default None takes None, whether its annotation says so or not."""
    if default is None and annotation is not None:
        annotation = Optional[annotation]  # noqa: UP045
    return Port(checked_name(name, where), annotation, default)


def _resolved(annotation: Any, scope: Mapping[str, Any]) -> Any:
    """An annotation as a type; a text is evaluated where it was written.

    None where there is none, or where it names what is only imported for type checkers: then every value
    is taken.
    """
    if annotation is inspect.Parameter.empty:
        return None
    if annotation is None:
        return type(None)
    if not isinstance(annotation, str):
        return annotation
    try:
        # The user's own annotation, which Python itself would have evaluated at the definition.
        resolved = eval(annotation, dict(scope))  # noqa: S307
    except Exception:  # whatever a foreign expression raises
        return None
    return type(None) if resolved is None else resolved


# ---------------------------------------------------------------- checking what is given


def validate(ports: Ports, given: Mapping[str, object], where: str) -> dict[str, Data]:
    """Turn what is given, and defaults for the rest, into data by link label.

    A list, tuple or dict that holds data nodes is a namespace: each node gets a link of its own
    (flatten). Whatever else is given becomes one data node of the kind that the port asks for.

    Errors: InputInvalid for an unknown port or a value of the wrong type, InputMissing.
    """
    ports.require(given, where)
    found: dict[str, Data] = {}
    for name, value in {**ports.defaults(), **given}.items():
        here = f"{where}: {name}"
        if is_namespace(value):
            found.update(flatten(name, value, here))
        else:
            found[name] = to_data(value, here, port_of(ports, name, where).annotation)
    return found


def is_namespace(value: object) -> bool:
    """Whether a value is a list, tuple or dict that holds data nodes, at whatever depth."""
    if isinstance(value, list | tuple):
        return any(isinstance(item, Data) or is_namespace(item) for item in value)
    if isinstance(value, dict):
        return any(isinstance(item, Data) or is_namespace(item) for item in value.values())
    return False


def flatten(port: str, value: object, where: str) -> dict[str, Data]:
    """Data of a namespace by link label: port__0 … for a list, port__name for a dict, and so on inside.

    Items that are no nodes become nodes.

    Errors: InputInvalid for a name that cannot be part of a label, or an item that is no data.
    """
    found: dict[str, Data] = {}
    _flatten(port, value, where, found)
    return found


def _flatten(label: str, value: object, where: str, found: dict[str, Data]) -> None:
    if isinstance(value, Data):
        found[label] = value
    elif isinstance(value, list | tuple) and is_namespace(value):
        for number, item in enumerate(value):
            _flatten(f"{label}__{number}", item, f"{where}[{number}]", found)
    elif isinstance(value, dict) and is_namespace(value):
        for name, item in value.items():
            here = f"{where}[{name!r}]"
            if not isinstance(name, str) or not _ONE_WORD.fullmatch(name) or name[0].isdigit():
                raise InputInvalid(
                    here, name, "a key that is a name: letters, digits, single underscores inside"
                )
            _flatten(f"{label}__{name}", item, here, found)
    else:
        found[label] = to_data(value, where)


def unflatten(labelled: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of flatten, for data and plain values: by port, with lists and dicts as they were given."""
    if not any("__" in label for label in labelled):
        return dict(labelled)
    tree: dict[str, Any] = {}
    for label, value in labelled.items():
        *path, last = label.split("__")
        level = tree
        for part in path:
            level = level.setdefault(part, _Level())
        level[last] = value
    return {name: _closed(value) for name, value in tree.items()}


class _Level(dict[str, Any]):
    """A level of a namespace under construction, to tell it from a dict that is a value."""


def _closed(value: Any) -> Any:
    if not isinstance(value, _Level):
        return value
    if all(name.isdigit() for name in value):
        return [_closed(value[name]) for name in sorted(value, key=int)]
    return {name: _closed(item) for name, item in value.items()}
