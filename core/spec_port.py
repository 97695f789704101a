"""Ports of a process spec: what a WorkChain takes or gives under one name, and namespaces of them."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Union, get_args

from grange.core.data.convert import described, to_data
from grange.core.data.dict import Dict
from grange.core.errors import GrangeError, InputInvalid, InputMissing
from grange.core.json_value import checked
from grange.core.node import Data
from grange.core.port import REQUIRED, Ports, checked_name, flatten, is_namespace, unflatten

#: Between the names of namespaces and ports in the label of a link, as in AiiDA.
SEPARATOR = "__"
#: Says what is wrong with a value, or None; takes the value, and the port if it has a second parameter.
Validator = Callable[..., str | None]


@dataclass(slots=True)
class Gathered:
    """What a namespace was given, as it is recorded.

    nodes: label of the link → data. settings: what is no data, nested by name as it was given.
    """

    nodes: dict[str, Data] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


class SpecPort:
    """What is taken, or given, under one name; the arguments are those of AiiDA's ports.

    valid_type: a data class, a type of Python's (float, list[int] …), or a tuple of such; None for any data.
    default: a value, or a function without parameters that makes one. validator(value, port) gives a text
    that says what is wrong, or None. serializer: makes data of what is none. non_db: the value is no data:
    it is recorded at the process itself and has to be JSON. spread: lists and dicts of nodes are taken too,
    each node linked by itself, as ports of functions and CalcJobs take them.
    """

    def __init__(
        self,
        name: str,
        *,
        valid_type: Any = None,
        help: str = "",  # noqa: A002 – AiiDA's name
        required: bool = True,
        default: Any = REQUIRED,
        validator: Validator | None = None,
        serializer: Callable[[Any], Any] | None = None,
        non_db: bool | None = None,
        is_metadata: bool | None = None,
        spread: bool = False,
    ) -> None:
        self.name = name
        self.valid_type = valid_type
        self.help = help
        self.required = required
        self.default = default
        self.validator = validator
        self.serializer = serializer
        #: None: as the namespace has it.
        self.non_db = is_metadata if non_db is None else non_db
        self.spread = spread

    def __repr__(self) -> str:
        return f"<port {self.name}: {self.expected}>"

    @property
    def has_default(self) -> bool:
        """Whether something is taken where nothing is given."""
        return self.default is not REQUIRED

    @property
    def expected(self) -> str:
        """What it takes, for people."""
        annotation = self.annotation
        return "a value" if annotation is None else described(annotation)

    @property
    def annotation(self) -> Any:
        """valid_type as one annotation; None for any data."""
        if isinstance(self.valid_type, tuple | list):
            return Union[tuple(self.valid_type)] if self.valid_type else None  # noqa: UP007
        return self.valid_type

    def copied(self) -> SpecPort:
        """A port of its own with the same settings."""
        return copy.copy(self)

    @property
    def takes_none(self) -> bool:
        """Whether None is a value for it, and not the absence of one."""
        annotation = self.annotation
        return self.required and (annotation is NoneType or NoneType in get_args(annotation))

    def default_value(self) -> Any:
        """What is taken where nothing is given, None for nothing: made anew each time.

        A node in a definition would be one and the same for all processes, and belong to the profile that
        the first of them was stored in.
        """
        default = self.default if self.has_default else None
        if isinstance(default, Data):
            return default if default.is_stored else _twin(default)
        if callable(default):
            return default()
        return default

    def gather(self, value: Any, where: str, label: str, found: Gathered) -> Any:
        """Note a value as data under its label; returns it as validators see it.

        Errors: InputInvalid.
        """
        if self.serializer is not None and not isinstance(value, Data):
            value = self.serializer(value)
        if self.spread and is_namespace(value):
            found.nodes.update(flatten(label, value, where))
        else:
            value = found.nodes[label] = self.data_of(value, where)
        validate(self.validator, value, self, where)
        return value

    def data_of(self, value: Any, where: str) -> Data:
        """A value as the data that this port takes. Errors: InputInvalid."""
        return to_data(value, where, self.annotation)

    def check(self, data: Data, where: str) -> None:
        """Look at data that is there already. Errors: InputInvalid."""
        self.data_of(data, where)
        validate(self.validator, data, self, where)

    def setting(self, value: Any, where: str) -> Any:
        """A value that is no data, as JSON. Errors: InputInvalid."""
        if self.serializer is not None:
            value = self.serializer(value)
        if isinstance(value, Data):
            value = value.value
        types = self.valid_type if isinstance(self.valid_type, tuple | list) else (self.valid_type,)
        classes = tuple(one for one in types if isinstance(one, type) and not issubclass(one, Data))
        if float in classes:
            classes = (*classes, int)
        if classes and not isinstance(value, classes):
            raise InputInvalid(where, value, self.expected)
        value = checked(value, where)
        validate(self.validator, value, self, where)
        return value


class PortNamespace(MutableMapping[str, "SpecPort | PortNamespace"]):
    """Ports under a common name, by their own; namespaces inside. The arguments are those of AiiDA's.

    dynamic: takes what has no port of its own, of valid_type. non_db: also for all inside. populate_defaults:
    whether defaults inside are taken although nothing was given for the namespace itself. required: of one
    that is not, nothing inside has to be given as long as nothing is.
    """

    def __init__(
        self,
        name: str = "",
        *,
        help: str = "",  # noqa: A002 – AiiDA's name
        required: bool = True,
        validator: Validator | None = None,
        valid_type: Any = None,
        default: Any = REQUIRED,
        dynamic: bool | None = None,
        populate_defaults: bool = True,
        non_db: bool | None = None,
        is_metadata: bool | None = None,
        serializer: Callable[[Any], Any] | None = None,
        spread: bool = False,
    ) -> None:
        self.name = name
        self.help = help
        self.required = required
        self.validator = validator
        self.valid_type = valid_type
        self.default = default
        self.dynamic = valid_type is not None if dynamic is None else dynamic
        self.populate_defaults = populate_defaults
        self.non_db = is_metadata if non_db is None else non_db
        self.serializer = serializer
        self.spread = spread
        self._members: dict[str, SpecPort | PortNamespace] = {}

    def __repr__(self) -> str:
        return f"<namespace {self.name or 'of all ports'}: {', '.join(self) or 'no ports'}>"

    @classmethod
    def of_ports(cls, ports: Ports) -> PortNamespace:
        """The ports of a function or a CalcJob as a namespace."""
        found = cls(spread=True)
        for port in ports.values():
            # A CalcJob's own default of None is what it has where nothing is given.
            default = REQUIRED if port.default is None else port.default
            found[port.name] = SpecPort(
                port.name, valid_type=port.annotation, required=port.required, default=default, spread=True
            )
        if ports.dynamic is not None:
            found.dynamic, found.valid_type = True, ports.dynamic.annotation
        return found

    # -- the ports in it

    def __getitem__(self, name: str) -> SpecPort | PortNamespace:
        return self._members[name]

    def __setitem__(self, name: str, member: SpecPort | PortNamespace) -> None:
        if not isinstance(member, SpecPort | PortNamespace):
            raise InputInvalid(self._place(name), member, "a port or a namespace of ports")
        checked_name(name, self.name or "port")
        if member.non_db is None:
            member.non_db = self.non_db
        member.name = name
        self._members[name] = member

    def __delitem__(self, name: str) -> None:
        del self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def _place(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name

    @property
    def has_default(self) -> bool:
        """Whether something is taken where nothing is given."""
        return self.default is not REQUIRED

    def get_port(self, name: str) -> SpecPort | PortNamespace:
        """The port of a name; "a.b" is b in the namespace a.

        Errors: InputInvalid for one that is not there.
        """
        found: SpecPort | PortNamespace = self
        for part in name.split("."):
            if not isinstance(found, PortNamespace) or part not in found:
                raise InputInvalid("port", name, f"one of {', '.join(self) or 'no ports'}")
            found = found[part]
        return found

    def namespace_of(self, name: str, **options: Any) -> PortNamespace:
        """The namespace of a name, "a.b" for one in another; made with these options where it is missing.

        Errors: InputInvalid where there is a port of that name.
        """
        found = self
        *above, last = name.split(".")
        for part in above:
            found = found._namespace(part)
        return found._namespace(last, **options)

    def _namespace(self, name: str, **options: Any) -> PortNamespace:
        member = self._members.get(name)
        if member is None:
            member = self[name] = PortNamespace(name, **options)
        if not isinstance(member, PortNamespace):
            raise InputInvalid(self._place(name), member, "the name of a namespace (there is a port)")
        return member

    def copied(self) -> PortNamespace:
        """A namespace of its own with copies of all inside."""
        twin = copy.copy(self)
        twin._members = {name: member.copied() for name, member in self.items()}
        return twin

    def chosen(self, exclude: tuple[str, ...], include: tuple[str, ...] | None) -> PortNamespace:
        """A copy without some ports, or with some alone; "a.b" is b in the namespace a."""
        twin = copy.copy(self)
        twin._members = {}
        for name, member in self.items():
            if name in exclude:
                continue
            if include is None or name in include:
                inside = None
            else:
                inside = _below(name, include)
                if not inside:
                    continue
            if isinstance(member, PortNamespace):
                twin._members[name] = member.chosen(_below(name, exclude), inside)
            elif inside is None:
                twin._members[name] = member.copied()
        return twin

    # -- what is given

    def gather(self, given: Any, where: str, label: str, found: Gathered) -> dict[str, Any]:
        """Check what is given for this namespace, with defaults for the rest, and note it.

        Returns the values by name, as validators see them. label: of the namespace, "" for all ports.
        Errors: InputInvalid for an unknown port or a wrong value, InputMissing.
        """
        if not isinstance(given, Mapping):
            raise InputInvalid(where, given, self.expected)
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in self._members:
                values[name] = self.gather_dynamic(name, value, f"{where}: {name}", label, found)
        for name, member in self._members.items():
            here = f"{where}: {name}"
            value = given[name] if name in given else member.default_value()
            if value is None and not member.takes_none:
                if member.required and not member.has_default:
                    raise InputMissing(here, member.expected)
                continue
            values[name] = self._gather_member(member, value, here, label, found)
        validate(self.validator, values, self, where)
        return values

    def _gather_member(
        self, member: SpecPort | PortNamespace, value: Any, where: str, label: str, found: Gathered
    ) -> Any:
        if isinstance(member, PortNamespace):
            inside = Gathered(found.nodes)
            values = member.gather(value, where, _joined(label, member.name), inside)
            if inside.settings:
                found.settings[member.name] = inside.settings
            return values
        if member.non_db:
            setting = found.settings[member.name] = member.setting(value, where)
            return setting
        return member.gather(value, where, _joined(label, member.name), found)

    def gather_dynamic(self, name: Any, value: Any, where: str, label: str, found: Gathered) -> Any:
        """Note what has no port of its own: data, or a dict of such. Errors: InputInvalid."""
        if not self.dynamic:
            near = difflib.get_close_matches(str(name), list(self._members), n=1, cutoff=0.5)
            said = f"did you mean {near[0]!r}? " if near else ""
            raise InputInvalid(
                where, value, f"one of its ports ({said}it has {', '.join(self._members) or 'none'})"
            )
        if self.non_db:
            setting = found.settings[name] = checked(value, where)
            return setting
        checked_name(name, where)
        port = SpecPort(name, valid_type=self.valid_type, serializer=self.serializer, spread=self.spread)
        if isinstance(value, Mapping) and not self.spread and self._is_namespace(value):
            inside = PortNamespace(name, valid_type=self.valid_type, dynamic=True, serializer=self.serializer)
            return inside.gather(value, where, _joined(label, name), found)
        return port.gather(value, where, _joined(label, name), found)

    def _is_namespace(self, value: Mapping[Any, Any]) -> bool:
        """Whether a dict given to a dynamic namespace is another one, and not the value of a Dict."""
        if any(isinstance(item, Data) for item in value.values()):
            return True
        types = self.valid_type if isinstance(self.valid_type, tuple | list) else (self.valid_type,)
        if types != (None,) and not any(isinstance(one, type) and issubclass(Dict, one) for one in types):
            return dict not in types
        return any(isinstance(item, Mapping) and self._is_namespace(item) for item in value.values())

    takes_none = False

    @property
    def expected(self) -> str:
        """What it takes, for people."""
        return f"a dict of its ports ({', '.join(self) or 'any names'})"

    def default_value(self) -> Any:
        """What is taken where nothing is given: its default; {} where its ports are to be looked at; None.

        Of one that is not required, and inside of which something would have to be given, nothing is taken.
        """
        if self.has_default:
            return self.default() if callable(self.default) else self.default
        return {} if self.required or (self.populate_defaults and not self._lacks()) else None

    def _lacks(self) -> bool:
        """Whether something has to be given."""
        return any(
            member.required
            and not member.has_default
            and (not isinstance(member, PortNamespace) or member._lacks())
            for member in self.values()
        )

    # -- what is given out

    def port_for(self, name: str, where: str) -> SpecPort:
        """The port that takes what is called so ("a.b": b in a), one of its own or that of the dynamic ones.

        Errors: InputInvalid.
        """
        first, _, rest = name.partition(".")
        member = self._members.get(first)
        if member is None:
            if not self.dynamic:
                has = ", ".join(self) or "none"
                raise InputInvalid(where, name, f"one that spec.output(…) has promised (there are: {has})")
            for part in name.split("."):
                checked_name(part, where)
            return SpecPort(name, valid_type=self.valid_type)
        if isinstance(member, PortNamespace):
            if not rest:
                raise InputInvalid(where, name, member.expected)
            return member.port_for(rest, where)
        if rest and not member.spread:
            raise InputInvalid(
                where,
                name,
                f"{first} as one node, for it is no namespace; a calcfunction that returns a dict makes a "
                "node of each key, one that returns gr.Dict(…) a single one",
            )
        return member

    def missing(self, values: Mapping[str, Any]) -> list[str]:
        """The names of the ports that need a value and have none."""
        found: list[str] = []
        for name, member in self._members.items():
            value = values.get(name)
            if isinstance(member, PortNamespace):
                if member.required or value:
                    found += [f"{name}.{inside}" for inside in member.missing(value or {})]
            elif value is None and member.required:
                found.append(name)
        return found

    def check_namespaces(self, values: Mapping[str, Any], where: str) -> None:
        """Ask the validators of this and all namespaces in it that have values. Errors: InputInvalid."""
        for name, member in self._members.items():
            if isinstance(member, PortNamespace) and values.get(name):
                member.check_namespaces(values[name], f"{where}.{name}")
        validate(self.validator, values, self, where)

    # -- what is recorded

    def nested(self, labelled: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The values of all ports by name, of what is recorded: the inverse of gather.

        Namespaces that are required are there, be it empty.
        """
        values: dict[str, Any] = {}
        below: dict[str, dict[str, Any]] = {}
        for label, value in labelled.items():
            first, separator, rest = label.partition(SEPARATOR)
            if separator:
                below.setdefault(first, {})[rest] = value
            else:
                values[first] = value
        for name, inside in below.items():
            member = self._members.get(name)
            if isinstance(member, PortNamespace):
                continue
            spread = self.spread if member is None else member.spread
            if spread:
                values[name] = unflatten({f"{name}{SEPARATOR}{rest}": one for rest, one in inside.items()})[
                    name
                ]
            else:
                values[name] = PortNamespace(name).nested(inside, {})
        for name, member in self._members.items():
            if isinstance(member, PortNamespace):
                inside, kept = below.get(name, {}), settings.get(name, {})
                if inside or kept or (member.required and member.populate_defaults):
                    values[name] = member.nested(inside, kept)
        for name, value in settings.items():
            if not isinstance(self._members.get(name), PortNamespace):
                values[name] = value
        return values


def validate(validator: Validator | None, value: Any, port: SpecPort | PortNamespace, where: str) -> None:
    """Ask a validator.

    Errors: InputInvalid with what it says, or what it raises.
    """
    if validator is None:
        return
    try:
        said = validator(value, port) if _takes_two(validator) else validator(value)
    except GrangeError:
        raise
    except Exception as error:  # somebody's own code
        raise InputInvalid(
            where, value, f"what its validator takes (it raised {type(error).__name__}: {error})"
        ) from error
    if said is not None:
        raise InputInvalid(where, value, f"what its validator takes ({said})")


def _takes_two(validator: Validator) -> bool:
    try:
        parameters = inspect.signature(validator).parameters.values()
    except (TypeError, ValueError):
        return True
    kinds = [parameter.kind for parameter in parameters if parameter.default is inspect.Parameter.empty]
    return inspect.Parameter.VAR_POSITIONAL in kinds or len(kinds) > 1


def _joined(label: str, name: str) -> str:
    return f"{label}{SEPARATOR}{name}" if label else name


def _below(name: str, rules: tuple[str, ...]) -> tuple[str, ...]:
    """The rules for what is in a namespace."""
    return tuple(rule[len(name) + 1 :] for rule in rules if rule.startswith(f"{name}."))


def _twin(node: Data) -> Data:
    """Data with the same content that is not stored."""
    twin = type(node).from_attributes(node.attributes, dict(node.files))
    twin.label, twin.description, twin.computer_id = node.label, node.description, node.computer_id
    return twin
