"""Calls: the sets of inputs that a campaign's function or class is to be called with."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from grange.core.caching import Caching
from grange.core.data.convert import plain, to_data
from grange.core.errors import InputInvalid
from grange.core.node import Data
from grange.core.port import Port, flatten, is_namespace, port_of
from grange.core.recipe import Recipe
from grange.core.resources import attributes_of_resources, checked_resources
from grange.farm.task import Resources


@dataclass(slots=True)
class Argument:
    """What one port of one call is given.

    nodes: link label → data; one for a plain value, several where the value is a list, tuple or dict
    of nodes. value: the same as a plain Python value. hash: of the content.
    """

    nodes: Mapping[str, Data]
    value: object
    hash: bytes


@dataclass(slots=True)
class Call:
    """One set of inputs. index: its place in the order of the map."""

    index: int
    arguments: dict[str, Argument]
    key: bytes

    def values(self) -> dict[str, object]:
        """The inputs as plain Python values."""
        return {port: argument.value for port, argument in self.arguments.items()}


class Fixed:
    """A list, or other iterable, that is one value for every call: gr.fixed([1, 2, 3])."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Calls:
    """The calls of one map: columns of values, gone through in step (zip) or in every combination.

    All values are checked when it is made; they become data nodes only slice by slice.

    Errors: InputInvalid, naming port, place, value and what was expected.
    """

    def __init__(
        self,
        recipe: Recipe,
        inputs: Mapping[str, object],
        *,
        product: bool,
        resources: Resources,
        caching: Caching = Caching.SHARED,
    ) -> None:
        self.recipe = recipe
        self.resources = checked_resources(resources, recipe.label)
        self.attributes: Mapping[str, Any] = recipe.attributes
        if kept := attributes_of_resources(self.resources):
            self.attributes = {**self.attributes, **kept}
        self.caching = caching
        self._ports = {name: port_of(recipe.ports, name, recipe.label) for name in inputs}
        recipe.ports.require(inputs, recipe.label)
        self._columns: dict[str, Sequence[object]] = {}
        self._constants: dict[str, Argument] = {}
        for name, given in inputs.items():
            if isinstance(given, Fixed):
                self._constants[name] = self._argument(name, given.value)
            elif is_column(given):
                self._columns[name] = materialised(given)
            else:
                self._constants[name] = self._argument(name, given)
        self._product = product
        self._length = self._check_lengths()
        self._labels: list[str] = []
        #: how many calls the maps before this one have
        self.offset = 0
        self._memo: dict[tuple[str, int], Argument] = {}
        self._made: dict[str, list[Argument]] = {}
        for name, column in self._columns.items():
            made = (self._argument(name, value, place) for place, value in enumerate(column))
            if product:
                self._made[name] = list(made)
            else:  # checked now, made again slice by slice: a million calls are not a million nodes in memory
                deque(made, maxlen=0)

    def __len__(self) -> int:
        return self._length

    def set_labels(self, labels: Sequence[str] | None) -> None:
        """Names of the calls, for people.

        Errors: InputInvalid when they are no texts, or not as many as there are calls.
        """
        if labels is None:
            return
        given = list(labels)
        if (
            isinstance(labels, str)
            or len(given) != self._length
            or not all(isinstance(one, str) for one in given)
        ):
            raise InputInvalid(
                f"{self.recipe.label}: labels", labels, f"{self._length} texts, one for each call"
            )
        self._labels = given

    @property
    def labelled(self) -> bool:
        """Whether the calls were given names."""
        return bool(self._labels)

    def label_of(self, call: Call) -> str:
        """The name of a call, "" where none was given."""
        return self._labels[call.index] if self._labels else ""

    def _check_lengths(self) -> int:
        lengths = {name: len(column) for name, column in self._columns.items()}
        if not lengths:
            return 1
        if self._product:
            return prod(lengths.values())
        if len(set(lengths.values())) > 1:
            raise InputInvalid(
                f"{self.recipe.label}: lengths",
                lengths,
                "as many values for each input, or product=True for every combination of them",
            )
        return next(iter(lengths.values()))

    def slice(self, start: int, stop: int, salt: bytes = b"") -> list[Call]:
        """The calls from start to stop. salt: of the campaign, for calls that must not be shared."""
        return [self._call(index, salt) for index in range(start, min(stop, self._length))]

    def _call(self, index: int, salt: bytes) -> Call:
        arguments = dict(self._constants)
        rest = index
        for name in reversed(self._columns):
            if self._product:
                rest, place = divmod(rest, len(self._columns[name]))
                arguments[name] = self._made[name][place]
            else:
                arguments[name] = self._remembered(name, self._columns[name][index])
        return Call(index, arguments, self._key(arguments, index, salt))

    def _key(self, arguments: Mapping[str, Argument], index: int, salt: bytes) -> bytes:
        own = b""
        if self.caching is Caching.PRIVATE:
            own = salt + (self.offset + index).to_bytes(8, "little")
        return key_of_call(self.recipe.fingerprint, arguments, own)

    def _remembered(self, name: str, value: object) -> Argument:
        """One node for one object that stands in many calls; the column keeps the object alive."""
        if isinstance(value, bool | int | float | str):
            return self._argument(name, value)
        found = self._memo.get((name, id(value)))
        if found is None:
            found = self._memo[name, id(value)] = self._argument(name, value)
        return found

    def _argument(self, name: str, value: object, place: int | None = None) -> Argument:
        port = self._ports[name]
        where = f"{self.recipe.label}: {name}" if place is None else f"{self.recipe.label}: {name}[{place}]"
        return make_argument(port, name, value, where)


def key_of_call(fingerprint: bytes, arguments: Mapping[str, Argument], own: bytes = b"") -> bytes:
    """What equal calls have in common: SHA-256 of the fingerprint of the code and of the inputs by name.

    own: what sets a call apart from all that are equal.
    """
    digest = hashlib.sha256(fingerprint)
    for name in sorted(arguments):
        digest.update(name.encode())
        digest.update(b"\0")
        digest.update(arguments[name].hash)
    digest.update(own)
    return digest.digest()


def make_argument(port: Port, name: str, value: object, where: str) -> Argument:
    """Turn a given value into data nodes, a plain value and a hash."""
    if is_namespace(value):
        nodes = flatten(name, value, where)
        digest = hashlib.sha256(b"namespace")
        for label, node in nodes.items():
            digest.update(label.encode())
            digest.update(b"\0")
            digest.update(node.content_hash())
        return Argument(nodes, _plain_tree(value), digest.digest())
    data = to_data(value, where, port.annotation)
    return Argument({name: data}, plain(data), data.content_hash())


def _plain_tree(value: object) -> object:
    if isinstance(value, Data):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain_tree(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain_tree(item) for key, item in value.items()}
    return value


def is_column(given: object) -> bool:
    """Whether what a port is given is gone through call by call, or is one value for all.

    Lists, tuples, ranges, generators, one-dimensional arrays and data frame columns are gone through;
    numbers, texts, bytes, dicts, nodes, Atoms and what else is no plain sequence are one value.
    """
    if isinstance(given, str | bytes | bytearray | dict | Data):
        return False
    if isinstance(given, list | tuple | range | Iterator):
        return True
    kind = type(given)
    if kind.__module__.startswith(("numpy", "pandas")):
        return getattr(given, "ndim", 0) >= 1
    return isinstance(given, set | frozenset)


def materialised(given: Any) -> Sequence[object]:
    """The values of a column, as a sequence."""
    if isinstance(given, list | tuple | range):
        return given
    if isinstance(given, set | frozenset):
        return sorted(given)
    if hasattr(given, "tolist") and getattr(given, "ndim", 1) == 1:
        return list(given.tolist())
    return list(_iterated(given))


def _iterated(given: Iterable[object]) -> Iterator[object]:
    yield from given
