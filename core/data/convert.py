"""From plain Python values to data and back, as an annotation asks for it."""

from __future__ import annotations

import builtins
import collections.abc
import enum
import pathlib
import types
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Union, get_args, get_origin

from grange.core.data.array import Array, attributes_of_shape, named_arrays
from grange.core.data.bool import Bool, truth
from grange.core.data.dict import Dict, mapping
from grange.core.data.enum import Enum, attributes_of_member
from grange.core.data.float import Float, real, stored_float
from grange.core.data.folder import Folder, folder_contents
from grange.core.data.int import Int, whole
from grange.core.data.list import List, sequence
from grange.core.data.null import Null
from grange.core.data.singlefile import FileValue, SingleFile, file_content
from grange.core.data.str import Str, text
from grange.core.data.structure import Structure, attributes_of_structure, is_atoms
from grange.core.errors import InputInvalid
from grange.core.json_value import checked, is_numpy_scalar
from grange.core.node import Data
from grange.repository.key import Key, is_key

#: Makes data of a value, or refuses it with InputInvalid for that port.
Accept = Callable[[Any, str], Data]
#: Makes a plain JSON value of an item of a list or dict, or refuses it.
AcceptItem = Callable[[Any, str], Any]


def to_data(value: object, port: str, annotation: object | None = None) -> Data:
    """A plain value, or data, as data of the kind that an annotation asks for.

    annotation: a type of Python's (int, list[float], Optional, a Literal, an enumeration …), NumPy's or
    ASE's, or one of our data classes. None, Any, and what says nothing about data take every value.
    An int is taken for a float; a bool is no int.

    Errors: InputInvalid, naming the port, the value and what was expected.
    """
    if annotation is None:
        maker = _OF_TYPE.get(type(value))
        return maker(value, port) if maker is not None else _any(value, port)
    accept = _SIMPLE.get(annotation) if annotation.__hash__ is not None else None
    if accept is None:
        accept = acceptor(annotation)
    return accept(value, port)


def acceptor(annotation: object) -> Accept:
    """What makes data of values for an annotation; made once for each annotation."""
    try:
        return _acceptor(annotation)
    except TypeError:  # an annotation that cannot be hashed: Literal[[…]], Annotated[int, []]
        return _acceptor.__wrapped__(annotation)


def plain(data: Data) -> Any:
    """The plain Python value of data, to call functions with."""
    return data.value


def from_typed(typed: list[Any], port: str) -> Data:
    """Data of a typed value, as runners hand it over (docs/design.md, "Typed values").

    Errors: InputInvalid for a tag that is not known, or a value that is no data.
    """
    try:
        tag, value = typed
        maker = _OF_TAG[tag]
    except (TypeError, ValueError, KeyError):
        known = ", ".join(_OF_TAG)
        raise InputInvalid(port, typed, f"a typed value: [tag, value] with one of the tags {known}") from None
    return maker(value, port)


# ---------------------------------------------------------------- by the value's own type


def _int(value: Any, port: str) -> Data:
    return Int.from_attributes({"value": whole(value, port)})


def _float(value: Any, port: str) -> Data:
    return Float.from_attributes({"value": stored_float(real(value, port))})


def _str(value: Any, port: str) -> Data:
    return Str.from_attributes({"value": text(value, port)})


def _bool(value: Any, port: str) -> Data:
    return Bool.from_attributes({"value": truth(value, port)})


def _list(value: Any, port: str) -> Data:
    return List.from_attributes({"list": sequence(value, port)})


def _dict(value: Any, port: str) -> Data:
    return Dict.from_attributes(mapping(value, port))


def _null(value: Any, port: str) -> Data:
    if value is not None:
        raise InputInvalid(port, value, "None")
    return Null()


def _enum(value: Any, port: str) -> Data:
    return Enum.from_attributes(attributes_of_member(value, port))


def _array(value: Any, port: str) -> Data:
    return Array(named_arrays(value, port))


def _structure(value: Any, port: str) -> Data:
    return Structure.from_attributes(attributes_of_structure(value, port))


def _path(value: Any, port: str) -> Data:
    if isinstance(value, FileValue):
        return SingleFile(value)
    if not isinstance(value, pathlib.Path):
        raise InputInvalid(port, value, "the pathlib.Path of a file or folder")
    if value.is_dir():
        return Folder.from_attributes({}, folder_contents(value, port))
    return SingleFile.from_attributes(
        {"filename": text(value.name, port)}, {value.name: file_content(value, port)}
    )


def _any(value: Any, port: str) -> Data:
    """Data of whatever it is."""
    if isinstance(value, Data):
        return value
    for cls, maker in _OF_BASE.items():
        if isinstance(value, cls):
            return maker(value, port)
    if is_atoms(value):
        return _structure(value, port)
    if is_numpy_scalar(value):
        maker_of_item = _OF_TYPE.get(type(value.item()))
        if maker_of_item is not None:
            return maker_of_item(value.item(), port)
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and hasattr(value, "shape"):
        return _array(value, port)
    raise InputInvalid(
        port,
        value,
        "a value that can be recorded: a number, text, bool, None, list, dict, enumeration member, "
        "numpy.ndarray, ase.Atoms, pathlib.Path or data node",
    )


_OF_TYPE: dict[type, Accept] = {
    int: _int,
    float: _float,
    str: _str,
    bool: _bool,
    builtins.list: _list,
    tuple: _list,
    builtins.dict: _dict,
    type(None): _null,
}
#: In this order: an enumeration may be derived from int or str, and bool is.
_OF_BASE: dict[type, Accept] = {
    enum.Enum: _enum,
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    builtins.list: _list,
    tuple: _list,
    Mapping: _dict,
    pathlib.Path: _path,
    FileValue: _path,
    type(None): _null,
}


# ---------------------------------------------------------------- by annotation


def _or_node(cls: type[Data] | tuple[type[Data], ...], make: Accept, expected: str) -> Accept:
    """Takes data of a class as it is, refuses other data, makes data of plain values."""

    def accept(value: Any, port: str) -> Data:
        if isinstance(value, Data):
            if isinstance(value, cls):
                return value
            raise InputInvalid(port, value, expected)
        return make(value, port)

    return accept


def _accept_int(value: Any, port: str) -> Data:
    if isinstance(value, Int):
        return value
    return _int(value, port)


def _accept_float(value: Any, port: str) -> Data:
    if isinstance(value, Float | Int):
        return value
    return _float(value, port)


def _accept_str(value: Any, port: str) -> Data:
    if isinstance(value, Str):
        return value
    return _str(value, port)


_accept_bool = _or_node(Bool, _bool, "bool")
_accept_list = _or_node(List, _list, "list")
_accept_dict = _or_node(Dict, _dict, "dict")
_accept_array = _or_node(Array, _array, "numpy.ndarray")
_accept_structure = _or_node(Structure, _structure, "ase.Atoms")
_accept_path = _or_node((SingleFile, Folder), _path, "pathlib.Path")
_accept_null = _or_node(Null, _null, "None")


def _accept_file(value: Any, port: str) -> Data:
    if isinstance(value, SingleFile):
        return value
    if isinstance(value, pathlib.Path) and not value.is_dir():
        return _path(value, port)
    if isinstance(value, FileValue):
        return SingleFile(value)
    raise InputInvalid(port, value, "the pathlib.Path of a file, or SingleFile")


def _accept_folder(value: Any, port: str) -> Data:
    if isinstance(value, Folder):
        return value
    if isinstance(value, pathlib.Path) and value.is_dir():
        return _path(value, port)
    raise InputInvalid(port, value, "the pathlib.Path of a folder, or Folder")


def _accept_enum_node(value: Any, port: str) -> Data:
    if isinstance(value, Enum):
        return value
    return _enum(value, port)


_SIMPLE: dict[object, Accept] = {
    int: _accept_int,
    float: _accept_float,
    str: _accept_str,
    bool: _accept_bool,
    builtins.list: _accept_list,
    tuple: _accept_list,
    builtins.dict: _accept_dict,
    None: _accept_null,
    type(None): _accept_null,
    Any: _any,
    object: _any,
    Data: _any,
    Int: _accept_int,
    Float: _accept_float,
    Str: _accept_str,
    Bool: _accept_bool,
    List: _accept_list,
    Dict: _accept_dict,
    Enum: _accept_enum_node,
    Array: _accept_array,
    Structure: _accept_structure,
    SingleFile: _accept_file,
    Folder: _accept_folder,
    Null: _accept_null,
    pathlib.Path: _accept_path,
    enum.Enum: _accept_enum_node,
}


@lru_cache(maxsize=1024)
def _acceptor(annotation: object) -> Accept:
    try:
        if annotation in _SIMPLE:
            return _SIMPLE[annotation]
    except TypeError:  # not hashable
        pass
    annotation = _unwrapped(annotation)
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _union(get_args(annotation))
    if origin is typing.Literal:
        return _literal(get_args(annotation))
    if origin is not None:
        return _generic(annotation, origin)
    return _of_class(annotation)


def _unwrapped(annotation: Any) -> Any:
    """Without Annotated, NewType, aliases and the like: the type that counts."""
    while True:
        alias = getattr(get_origin(annotation), "__value__", None)  # NDArray is one from NumPy 2.5 on
        if get_origin(annotation) in (typing.Annotated, typing.Required, typing.NotRequired, typing.Final):
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, typing.TypeVar):
            annotation = annotation.__bound__ or Any
        elif alias is not None:
            annotation = alias[get_args(annotation)]
        elif hasattr(annotation, "__value__") and type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def _of_class(annotation: object) -> Accept:
    """For a class; one that says nothing about data takes every value."""
    if not isinstance(annotation, type):
        return _any
    if issubclass(annotation, enum.Enum):
        return _member_of(annotation)
    if issubclass(annotation, Data):
        return _only(annotation)
    if issubclass(annotation, pathlib.PurePath):
        return _accept_path
    known = (annotation.__module__, annotation.__name__)
    if known in (("ase.atoms", "Atoms"), ("ase", "Atoms")):
        return _accept_structure
    if known == ("numpy", "ndarray"):
        return _accept_array
    if annotation.__module__ == "numpy":
        return _numpy_scalar(annotation)
    if issubclass(annotation, collections.abc.Sequence):
        return _accept_list
    if issubclass(annotation, collections.abc.Mapping):
        return _accept_dict
    return _any


def _numpy_scalar(annotation: type) -> Accept:
    names = {cls.__name__ for cls in annotation.__mro__}
    if "integer" in names:
        return _accept_int
    if "floating" in names:
        return _accept_float
    return _accept_bool if names & {"bool", "bool_"} else _any


def _only(cls: type[Data]) -> Accept:
    def accept(value: Any, port: str) -> Data:
        if isinstance(value, cls):
            return value
        raise InputInvalid(port, value, f"a node of the class {cls.__name__}")

    return accept


def _member_of(cls: type[enum.Enum]) -> Accept:
    def accept(value: Any, port: str) -> Data:
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, cls):
            return _enum(value, port)
        raise InputInvalid(port, value, f"a member of {cls.__name__} ({', '.join(cls.__members__)})")

    return accept


def _union(members: tuple[Any, ...]) -> Accept:
    accepts = [acceptor(member) for member in members]
    expected = " or ".join(described(member) for member in members)

    def accept(value: Any, port: str) -> Data:
        if type(value) in members:  # the exact type first: Union[float, int] keeps an int an int
            return acceptor(type(value))(value, port)
        inside: list[InputInvalid] = []
        for one in accepts:
            try:
                return one(value, port)
            except InputInvalid as refused:
                if refused.port != port:  # the right type, with something wrong in it
                    inside.append(refused)
        if len(inside) == 1:
            raise inside[0]
        raise InputInvalid(port, value, expected)

    rest = [one for member, one in zip(members, accepts, strict=True) if member is not type(None)]
    return accept if len(rest) != 1 else _optional(rest[0])


def _optional(inner: Accept) -> Accept:
    """Takes None too; of what it refuses, the one type that there is knows best what is wrong."""

    def accept(value: Any, port: str) -> Data:
        if value is None or isinstance(value, Null):
            return _accept_null(value, port)
        try:
            return inner(value, port)
        except InputInvalid as refused:
            if refused.port != port:
                raise
            raise InputInvalid(port, value, f"{refused.expected} or None") from None

    return accept


def _literal(choices: tuple[Any, ...]) -> Accept:
    expected = "one of " + ", ".join(map(repr, choices))

    def accept(value: Any, port: str) -> Data:
        given = value.value if isinstance(value, Data) else value
        if not any(type(given) is type(choice) and given == choice for choice in choices):
            raise InputInvalid(port, given, expected)
        return _any(value, port)

    return accept


def _generic(annotation: Any, origin: Any) -> Accept:
    """For list[float], dict[str, int], tuple[int, …], numpy's NDArray and the like."""
    if not isinstance(origin, type) or origin.__module__ == "numpy":
        return acceptor(origin)
    item = _item_acceptor(annotation)
    if issubclass(origin, collections.abc.Mapping):

        def accept_mapping(value: Any, port: str) -> Data:
            if isinstance(value, Dict):
                item(value.value, port)
                return value
            return Dict.from_attributes(item(value, port))

        return accept_mapping
    if issubclass(origin, collections.abc.Iterable):

        def accept_sequence(value: Any, port: str) -> Data:
            if isinstance(value, List):
                item(value.value, port)
                return value
            return List.from_attributes({"list": item(value, port)})

        return accept_sequence
    return _any


# ---------------------------------------------------------------- items of lists and dicts


def _item_float(value: Any, port: str) -> Any:
    return checked(real(value, port), port)


def _item_null(value: Any, port: str) -> Any:
    if value is not None:
        raise InputInvalid(port, value, "None")
    return value


@lru_cache(maxsize=1024)
def _item_acceptor(annotation: Any) -> AcceptItem:
    """What takes an item of a list or dict and gives it as plain JSON."""
    annotation = _unwrapped(annotation)
    if annotation in _ITEM:
        return _ITEM[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _item_union(args)
    if origin is typing.Literal:
        return _item_literal(args)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        return _item_mapping(*args)
    if origin is tuple and args and args[-1] is not ...:
        return _item_tuple(args)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
        return _item_sequence(args[0] if args else Any)
    return checked


def _item_union(members: tuple[Any, ...]) -> AcceptItem:
    accepts = [_item_acceptor(member) for member in members]
    expected = " or ".join(described(member) for member in members)

    def accept(value: Any, port: str) -> Any:
        if type(value) in members and type(value) in _ITEM:
            return _ITEM[type(value)](value, port)
        for one in accepts:
            try:
                return one(value, port)
            except InputInvalid:
                continue
        raise InputInvalid(port, value, expected)

    return accept


def _item_literal(choices: tuple[Any, ...]) -> AcceptItem:
    accept_literal = _literal(choices)

    def accept(value: Any, port: str) -> Any:
        accept_literal(value, port)
        return value

    return accept


def _item_mapping(key: Any, item: Any) -> AcceptItem:
    accept_item = _item_acceptor(item)

    def accept(value: Any, port: str) -> Any:
        if not isinstance(value, Mapping):
            raise InputInvalid(port, value, "dict")
        checked(dict.fromkeys(value), port)
        return {name: accept_item(one, f"{port}[{name!r}]") for name, one in value.items()}

    return accept


def _item_tuple(items: tuple[Any, ...]) -> AcceptItem:
    accepts = [_item_acceptor(item) for item in items]

    def accept(value: Any, port: str) -> Any:
        if not isinstance(value, builtins.list | tuple) or len(value) != len(accepts):
            raise InputInvalid(port, value, f"a tuple of {len(accepts)}")
        return [
            one(item, f"{port}[{place}]")
            for place, (one, item) in enumerate(zip(accepts, value, strict=True))
        ]

    return accept


def _item_sequence(item: Any) -> AcceptItem:
    accept_item = _item_acceptor(item)
    expected = f"list[{described(item)}]"

    def accept(value: Any, port: str) -> Any:
        if not isinstance(value, builtins.list | tuple):
            raise InputInvalid(port, value, expected)
        return [accept_item(one, f"{port}[{place}]") for place, one in enumerate(value)]

    return accept


_ITEM: dict[Any, AcceptItem] = {
    int: whole,
    float: _item_float,
    str: text,
    bool: truth,
    builtins.list: sequence,
    tuple: sequence,
    builtins.dict: mapping,
    type(None): _item_null,
    Any: checked,
}


def described(annotation: Any) -> str:
    """An annotation as a person would write it."""
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "")


# ---------------------------------------------------------------- by tag


def _typed_float(value: Any, port: str) -> Data:
    return _float(float(value) if value in ("NaN", "Infinity", "-Infinity") else value, port)


def _typed_array(value: Any, port: str) -> Data:
    name = text(value["name"], port)
    return Array.from_attributes(
        attributes_of_shape(name, list(value["shape"])), {f"{name}.npy": _key(value["key"], port)}
    )


def _typed_file(value: Any, port: str) -> Data:
    return SingleFile.of_key(text(value["name"], port), _key(value["key"], port))


def _key(value: Any, port: str) -> Key:
    if not is_key(value):
        raise InputInvalid(f"{port}: key", value, "64 hexadecimal digits")
    return Key(value)


_OF_TAG: dict[str, Accept] = {
    "int": _int,
    "float": _typed_float,
    "str": _str,
    "bool": _bool,
    "list": _list,
    "dict": _dict,
    "array": _typed_array,
    "structure": _structure,
    "file": _typed_file,
}
