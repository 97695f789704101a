"""Builders: the inputs of a process, filled in attribute by attribute and checked at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from grange.core.errors import InputInvalid
from grange.core.process_spec import Exposable, inputs_of, name_of_process
from grange.core.spec_port import Gathered, PortNamespace, SpecPort


class BuilderNamespace(Mapping[str, Any]):
    """The inputs in one namespace: builder.energy.cutoff = 40. Errors of assignments: InputInvalid."""

    def __init__(self, ports: PortNamespace, where: str) -> None:
        object.__setattr__(self, "_ports", ports)
        object.__setattr__(self, "_where", where)
        object.__setattr__(self, "_values", {})
        for name, port in ports.items():
            if isinstance(port, PortNamespace):
                self._values[name] = BuilderNamespace(port, f"{where}.{name}")

    _ports: PortNamespace
    _where: str
    _values: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._values:
            return self._values[name]
        if name in self._ports:
            return None
        raise AttributeError(f"{self._where} has no port {name!r}{self._near(name)}")

    def __setattr__(self, name: str, value: Any) -> None:
        where = f"{self._where}.{name}"
        port = self._ports.get(name)
        if isinstance(port, PortNamespace):
            if not isinstance(value, Mapping):
                raise InputInvalid(where, value, port.expected)
            inside = BuilderNamespace(port, where)
            inside._merge(value)
            self._values[name] = inside
            return
        if port is None and not self._ports.dynamic:
            raise InputInvalid(where, value, f"one of its ports{self._near(name)}")
        if value is not None:
            _check(port, self._ports, name, value, where)
        self._values[name] = value

    def __delattr__(self, name: str) -> None:
        self._values.pop(name, None)

    def _near(self, name: str) -> str:
        near = difflib.get_close_matches(name, list(self._ports), n=1, cutoff=0.5)
        return f" (did you mean {near[0]!r}?)" if near else f" ({', '.join(self._ports) or 'none'})"

    def __dir__(self) -> list[str]:
        return sorted({*self._ports, *self._values})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<inputs of {self._where}: {self._inputs()!r}>"

    def _merge(self, values: Mapping[str, Any]) -> None:
        """Fill in what a dict has; what lies in namespaces is added to what is there."""
        for name, value in values.items():
            there = self._values.get(name)
            if isinstance(there, BuilderNamespace) and isinstance(value, Mapping):
                there._merge(value)
            else:
                setattr(self, name, value)

    def _inputs(self) -> dict[str, Any]:
        """What was filled in, without namespaces in which nothing was."""
        found: dict[str, Any] = {}
        for name, value in self._values.items():
            plain = value._inputs() if isinstance(value, BuilderNamespace) else value
            if plain is not None and not (isinstance(value, BuilderNamespace) and not plain):
                found[name] = plain
        return found


class ProcessBuilder(BuilderNamespace):
    """The inputs of a process: builder = Energy.get_builder(); builder.cutoff = 40; gr.submit(builder)."""

    def __init__(self, process: Exposable) -> None:
        super().__init__(inputs_of(process), name_of_process(process))
        object.__setattr__(self, "_process", process)

    _process: Exposable

    @property
    def process_class(self) -> Exposable:
        """What is to be submitted."""
        return self._process

    def __grange_call__(self) -> tuple[Exposable, dict[str, Any]]:
        return self._process, self._inputs()


def _check(port: SpecPort | None, ports: PortNamespace, name: str, value: Any, where: str) -> None:
    """Whether the port takes the value. Errors: InputInvalid."""
    if port is None:
        ports.gather_dynamic(name, value, where, "", Gathered())
    elif port.non_db:
        port.setting(value, where)
    else:
        port.gather(value, where, name, Gathered())
