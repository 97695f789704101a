"""Nodes, the records of the provenance graph: the base of all, of data (core/data), and processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, TypeVar, cast

from grange.core.content_hash import hash_of_content
from grange.core.errors import NodeImmutable
from grange.core.files import NO_FILES, Content, checked_path
from grange.core.json_value import checked, checked_text, copied, encoded
from grange.repository.key import Key, key_of


class Kind(StrEnum):
    """What a node is; the values are the database's."""

    DATA = "data"
    CALCULATION = "calculation"
    WORKFLOW = "workflow"


#: Reads contents by key, in order, in one go. Loaded nodes carry one and read their files when asked.
Reader = Callable[[Sequence[Key]], list[bytes]]

_N = TypeVar("_N", bound="Node")
_D = TypeVar("_D", bound="Data")
_P = TypeVar("_P", bound="ProcessNode")
_NO_ATTRIBUTES: Mapping[str, Any] = MappingProxyType({})


class Node:
    """One record of the graph.

    A node that was stored has an id and a uuid, and refuses changes of everything but label,
    description and extras (which `graph.update` writes). What it gives out of attributes are copies.
    """

    __slots__ = (
        "__weakref__",
        "_attributes",
        "_computer_id",
        "_contents",
        "_extras",
        "_files",
        "_hash",
        "_process_type",
        "_reader",
        "ctime",
        "description",
        "id",
        "label",
        "mtime",
        "user_id",
        "uuid",
    )

    node_type: ClassVar[str] = "node.Node."
    kind: ClassVar[Kind] = Kind.DATA

    id: int | None
    uuid: str | None
    label: str
    description: str
    ctime: datetime | None
    mtime: datetime | None
    user_id: int | None
    _attributes: dict[str, Any]
    _extras: dict[str, Any] | None
    _files: Mapping[str, Content]
    _contents: dict[str, bytes | Path] | None
    _computer_id: int | None
    _process_type: str | None
    _reader: Reader | None
    _hash: bytes | None

    def _begin(self, attributes: dict[str, Any], label: str = "", description: str = "") -> None:
        """Fill every slot; attributes are taken as they are, not checked and not copied."""
        self._attributes = attributes
        self.label = label
        self.description = description
        self.id = self.uuid = self.ctime = self.mtime = self.user_id = None
        self._extras = self._contents = self._computer_id = self._process_type = self._reader = self._hash = (
            None
        )
        self._files = NO_FILES

    @property
    def is_stored(self) -> bool:
        """Whether the node has a row in the database."""
        return self.id is not None

    @property
    def attributes(self) -> dict[str, Any]:
        """A copy of the attributes."""
        return cast("dict[str, Any]", copied(self._attributes))

    @attributes.setter
    def attributes(self, value: Mapping[str, Any]) -> None:
        self._refuse_if_stored("attributes")
        self._attributes = checked(value, "attributes")
        self._hash = None

    @property
    def extras(self) -> dict[str, Any]:
        """Whatever else somebody wants to note; may change after storing."""
        if self._extras is None:
            self._extras = {}
        return self._extras

    @extras.setter
    def extras(self, value: Mapping[str, Any]) -> None:
        self._extras = checked(value, "extras")

    @property
    def files(self) -> Mapping[str, Content]:
        """Path → content (bytes, or a file's path) before storing; path → key afterwards. Read-only."""
        return MappingProxyType(self._files)

    @files.setter
    def files(self, value: Mapping[str, Content]) -> None:
        self._refuse_if_stored("files")
        self._files = {checked_path(path): content for path, content in value.items()}
        self._contents = self._hash = None

    @property
    def computer_id(self) -> int | None:
        """The computer that the node belongs to."""
        return self._computer_id

    @computer_id.setter
    def computer_id(self, value: int | None) -> None:
        self._refuse_if_stored("computer_id")
        self._computer_id = value
        self._hash = None

    @property
    def process_type(self) -> str | None:
        """Of a process: which code it ran, as a dotted path or an entry point."""
        return self._process_type

    @process_type.setter
    def process_type(self, value: str | None) -> None:
        self._refuse_if_stored("process_type")
        self._process_type = None if value is None else checked_text(value, "process_type")

    def read_file(self, path: str) -> bytes:
        """The content of one of the node's files."""
        return self.read_files([path])[path]

    def read_files(self, paths: Iterable[str] | None = None) -> dict[str, bytes]:
        """The contents of some or all of the node's files, read in one go and kept with the node.

        Errors: FileNotFoundError for a path that the node has not; those of the repository.
        """
        wanted = list(self._files if paths is None else paths)
        found: dict[str, bytes] = {}
        missing: list[str] = []
        for path in wanted:
            content = self._content_in_memory(path)
            if content is None:
                missing.append(path)
            else:
                found[path] = content
        if missing:
            found.update(self._fetch(missing))
        return {path: found[path] for path in wanted}

    def _content_in_memory(self, path: str) -> bytes | None:
        if path not in self._files:
            there = ", ".join(sorted(self._files)) or "none"
            raise FileNotFoundError(f"{self!r} has no file {path!r}; its files: {there}")
        content = self._files[path]
        if self._contents is not None:
            content = self._contents.get(path, content)
        if isinstance(content, Path):
            return self._read_where_it_lay(path, content)
        return content if isinstance(content, bytes) else None

    def _read_where_it_lay(self, path: str, place: Path) -> bytes | None:
        """The content of a file that was given by its place; None if it is stored and lies there no more."""
        if self.id is None:
            return place.read_bytes()
        if self._reader is not None:
            return None
        content = place.read_bytes()
        return content if key_of(content) == self._files[path] else None

    def _fetch(self, paths: list[str]) -> dict[str, bytes]:
        if self._reader is None:
            raise FileNotFoundError(f"{self!r} has no access to the repository; load it to read its files")
        contents = self._reader([cast("Key", self._files[path]) for path in paths])
        read = dict(zip(paths, contents, strict=True))
        self._contents = {**(self._contents or {}), **read}
        return read

    def key_of_file(self, path: str) -> Key:
        """The key of one of the node's files."""
        content = self._files[path]
        if isinstance(content, bytes):
            return key_of(content)
        if isinstance(content, Path):
            with content.open("rb") as file:
                return Key(hashlib.file_digest(file, "sha256").hexdigest())
        return content

    def _refuse_if_stored(self, what: str) -> None:
        if self.id is not None:
            raise NodeImmutable(f"{self!r} is stored: its {what} cannot change; make a new node")

    def __repr__(self) -> str:
        where = f"id={self.id}" if self.id is not None else "not stored"
        return f"{type(self).__name__}({where})"


_classes: dict[str, type[Node]] = {}
_generic: dict[Kind, type[Node]] = {}


def register(cls: type[_N]) -> type[_N]:
    """Make a class known: nodes of its node_type are loaded as it."""
    _classes[cls.node_type] = cls
    return cls


def register_generic(cls: type[_N]) -> type[_N]:
    """Make a class known as that of its kind which nodes of unknown types are loaded as."""
    _generic[cls.kind] = cls
    return register(cls)


def class_of(node_type: str, kind: str) -> type[Node]:
    """The class that nodes of a type are loaded as.

    A type that nobody registered (of a foreign plugin) gets a class of its own, generic for its kind,
    which keeps its node_type and attributes as they are.
    """
    cls = _classes.get(node_type)
    if cls is None:
        base = _generic[Kind(kind)]
        body = {
            "__slots__": (),
            "node_type": node_type,
            "__module__": base.__module__,
            "__doc__": base.__doc__,
        }
        cls = type(base.__name__, (base,), body)
        _classes[node_type] = cls
    return cls


class NodeRef:
    """A stored node of which only id and kind are known: enough for the end of a link."""

    __slots__ = ("id", "kind")

    def __init__(self, id: int, kind: Kind) -> None:  # noqa: A002
        self.id = id
        self.kind = kind

    @classmethod
    def data(cls, id: int) -> NodeRef:  # noqa: A002
        """A data node."""
        return cls(id, Kind.DATA)

    @classmethod
    def calculation(cls, id: int) -> NodeRef:  # noqa: A002
        """A calculation."""
        return cls(id, Kind.CALCULATION)

    @classmethod
    def workflow(cls, id: int) -> NodeRef:  # noqa: A002
        """A workflow."""
        return cls(id, Kind.WORKFLOW)

    def __repr__(self) -> str:
        return f"{self.kind}(id={self.id})"


def _refuse_value(node: Data, _: object) -> NoReturn:
    node._refuse_if_stored("value")
    raise NodeImmutable(f"the value of {node!r} was given when it was made; make a new node")


@register_generic
class Data(Node):
    """A node that holds a value.

    Also what data of a type that is not known here is loaded as: then the value is its attributes.
    """

    __slots__ = ()
    node_type: ClassVar[str] = "data.Data."

    def __init_subclass__(cls) -> None:
        """Let an assignment to value say why it is refused."""
        own = vars(cls).get("value")
        if isinstance(own, property):
            cls.value = own.setter(_refuse_value)  # type: ignore[assignment, method-assign]

    @classmethod
    def from_attributes(
        cls: type[_D], attributes: dict[str, Any], files: Mapping[str, Content] | None = None
    ) -> _D:
        """A node that is not stored yet from attributes and files that are known to be right."""
        node = cls.__new__(cls)
        node._begin(attributes)
        if files:
            node._files = {checked_path(path): content for path, content in files.items()}
        return node

    @property
    def value(self) -> Any:
        """The plain Python value: a copy, so changing it changes nothing here."""
        return self.attributes

    def content_hash(self) -> bytes:
        """SHA-256 of type, attributes, files and computer (32 bytes): equal for equal content.

        Labels do not count.
        """
        if self._hash is None:
            keys = {path: self.key_of_file(path) for path in self._files}
            self._hash = hash_of_content(self.node_type, encoded(self._attributes), keys, self._computer_id)
        return self._hash


Data.value = Data.value.setter(_refuse_value)  # type: ignore[method-assign, attr-defined]


@register
class ProcessNode(Node):
    """Something that ran, runs or will run."""

    __slots__ = ()

    node_type: ClassVar[str] = "process.ProcessNode."
    kind: ClassVar[Kind] = Kind.CALCULATION

    def __init__(
        self,
        attributes: Mapping[str, Any] = _NO_ATTRIBUTES,
        *,
        label: str = "",
        description: str = "",
        files: Mapping[str, Content] | None = None,
        process_type: str | None = None,
        computer_id: int | None = None,
    ) -> None:
        """A process that is not stored yet.

        Errors: InputInvalid if the attributes are no JSON, or a file has a path that leads elsewhere.
        """
        self._begin(checked(attributes, "attributes"), label, description)
        if files:
            self._files = {checked_path(path): content for path, content in files.items()}
        self._process_type = process_type
        self._computer_id = computer_id

    @classmethod
    def from_checked(
        cls: type[_P],
        attributes: dict[str, Any],
        *,
        label: str = "",
        files: Mapping[str, Content] = NO_FILES,
        process_type: str | None = None,
    ) -> _P:
        """A process that is not stored yet from attributes that json_value.checked() has given.

        Thousands of processes may share what lies in them: nothing changes it.

        Errors: InputInvalid if a file has a path that leads elsewhere.
        """
        node = cls.__new__(cls)
        node._begin(attributes, label)
        if files:
            node._files = {checked_path(path): content for path, content in files.items()}
        node._process_type = process_type
        return node


@register_generic
class CalculationNode(ProcessNode):
    """A process that creates data from data."""

    __slots__ = ()
    node_type: ClassVar[str] = "process.calculation.CalculationNode."


@register
class CalcFunctionNode(CalculationNode):
    """A call of a Python function."""

    __slots__ = ()
    node_type: ClassVar[str] = "process.calculation.calcfunction.CalcFunctionNode."


@register
class CalcJobNode(CalculationNode):
    """A run of a program."""

    __slots__ = ()
    node_type: ClassVar[str] = "process.calculation.calcjob.CalcJobNode."


@register_generic
class WorkflowNode(ProcessNode):
    """A process that calls processes and returns data."""

    __slots__ = ()
    node_type: ClassVar[str] = "process.workflow.WorkflowNode."
    kind: ClassVar[Kind] = Kind.WORKFLOW


@register
class WorkFunctionNode(WorkflowNode):
    """A workflow that is a Python function."""

    __slots__ = ()
    node_type: ClassVar[str] = "process.workflow.workfunction.WorkFunctionNode."


@register
class WorkChainNode(WorkflowNode):
    """A workflow of steps."""

    __slots__ = ()
    node_type: ClassVar[str] = "process.workflow.workchain.WorkChainNode."
