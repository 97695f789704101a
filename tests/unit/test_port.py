"""Ports: read from functions and classes, and what they take."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.core.data import Float, Int, List, Null, Str, Structure
from grange.core.errors import InputInvalid, InputMissing
from grange.core.port import (
    REQUIRED,
    Port,
    Ports,
    checked_name,
    flatten,
    is_namespace,
    port_of,
    ports_of_class,
    ports_of_function,
    unflatten,
    validate,
)

if TYPE_CHECKING:
    from decimal import Decimal


def energy(structure: Structure, strain: float = 0.0, *, label: str | None = None) -> float:
    return strain


def dynamic(x: int, **terms: float) -> float:
    return x


def hidden(x: Decimal, y) -> None:  # type: ignore[no-untyped-def]
    pass


class TestReadingFunctions:
    def test_names_annotations_defaults_and_order(self) -> None:
        ports = ports_of_function(energy)
        assert list(ports) == ["structure", "strain", "label"]
        assert ports["structure"] == Port("structure", Structure)
        assert ports["structure"].required
        assert ports["strain"] == Port("strain", float, 0.0)
        assert ports["label"].annotation == str | None
        assert ports["label"].default is None
        assert not ports["label"].required
        assert ports.dynamic is None
        assert ports.defaults() == {"strain": 0.0, "label": None}

    def test_once_for_each_function(self) -> None:
        assert ports_of_function(energy) is ports_of_function(energy)

    def test_any_name_with_kwargs(self) -> None:
        ports = ports_of_function(dynamic)
        assert list(ports) == ["x"]
        assert port_of(ports, "anything", "f") == Port("anything", float)
        with pytest.raises(InputInvalid, match="label of a link"):
            port_of(ports, "any thing", "f")

    def test_what_only_type_checkers_see_and_what_is_not_annotated_takes_everything(self) -> None:
        ports = ports_of_function(hidden)
        assert ports["x"].annotation is None
        assert ports["y"].annotation is None

    def test_annotations_of_the_enclosing_function(self) -> None:
        local = int

        def inner(x: local) -> local:
            return local(x)

        assert ports_of_function(inner)["x"].annotation is int

    def test_a_wrapped_function_and_a_partial_one(self) -> None:
        @functools.wraps(energy)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return energy(*args, **kwargs)

        assert list(ports_of_function(wrapper)) == ["structure", "strain", "label"]
        assert "x" in ports_of_function(functools.partial(dynamic, x=2))

    def test_what_cannot_be_recorded_by_name_is_refused(self) -> None:
        def variadic(*values: int) -> None: ...
        def positional(x: int, /) -> None: ...
        def trailing(lambda_: float) -> None: ...
        def private(_x: float) -> None: ...
        def double(a__b: float) -> None: ...

        for function, name in (
            (variadic, "values"),
            (positional, "x"),
            (trailing, "lambda_"),
            (private, "_x"),
            (double, "a__b"),
        ):
            with pytest.raises(InputInvalid, match=name):
                ports_of_function(function)
        with pytest.raises(InputInvalid, match="signature"):
            ports_of_function("energy")  # type: ignore[arg-type]


class Base:
    structure: Structure
    charge: int = 0


class Inputs(Base):
    charge: int = 1
    basis: str


class TestReadingClasses:
    def test_base_classes_first_and_overridden(self) -> None:
        ports = ports_of_class(Inputs)
        assert dict(ports) == {
            "structure": Port("structure", Structure),
            "charge": Port("charge", int, 1),
            "basis": Port("basis", str, REQUIRED),
        }
        assert ports_of_class(Inputs) is ports
        assert len(ports_of_class(type("Empty", (), {}))) == 0

    def test_a_value_without_type_is_a_slip(self) -> None:
        class Slip:
            charge = 0

        with pytest.raises(InputInvalid, match="a type, as in `charge: int"):
            ports_of_class(Slip)

    def test_names(self) -> None:
        class Wrong:
            lambda_: float

        with pytest.raises(InputInvalid, match="lambda_"):
            ports_of_class(Wrong)
        with pytest.raises(InputInvalid):
            Ports.of_names(["a b"])


class TestRequire:
    ports = ports_of_function(energy)

    def test_missing(self) -> None:
        with pytest.raises(InputMissing, match=r"eos: structure: expected Structure, got nothing"):
            self.ports.require({"strain": 1}, "eos")
        with pytest.raises(InputMissing, match=r"missing too: b, c"):
            Ports.of_names("abc").require((), "f")

    def test_unknown_with_the_name_that_was_meant(self) -> None:
        with pytest.raises(InputInvalid, match=r"did you mean 'strain'\? it has structure, strain, label"):
            self.ports.require({"structure": 1, "strian": 1}, "eos")
        with pytest.raises(InputInvalid, match=r"one of its ports \(it has none\)"):
            Ports(()).require({"x": 1}, "f")

    def test_anything(self) -> None:
        Ports.anything().require(["x", "y"], "f")
        assert port_of(Ports.anything(), "x", "f").annotation is None


class TestValidate:
    def test_defaults_become_data_too(self) -> None:
        found = validate(ports_of_function(dynamic), {"x": 2, "more": 3}, "f")
        assert {name: (type(data), data.value) for name, data in found.items()} == {
            "x": (Int, 2),
            "more": (Float, 3.0),
        }

        def optional(x: int | None = None, y: float = 1, z: str = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

        assert {
            name: type(data) for name, data in validate(ports_of_function(optional), {}, "f").items()
        } == {
            "x": Null,
            "y": Float,
            "z": Null,
        }

    def test_wrong_type_names_port_value_and_expectation(self) -> None:
        with pytest.raises(InputInvalid) as refused:
            validate(ports_of_function(dynamic), {"x": 2.5}, "scan")
        assert (refused.value.port, refused.value.value, refused.value.expected) == ("scan: x", 2.5, "int")
        assert str(refused.value) == "scan: x: expected int, got 2.5 (float)"

    def test_a_namespace_of_nodes(self) -> None:
        one, two = Int(1), Str("b")

        def collect(values: list) -> None: ...  # type: ignore[type-arg]

        assert validate(ports_of_function(collect), {"values": [one, two]}, "f") == {
            "values__0": one,
            "values__1": two,
        }

    def test_a_list_without_nodes_is_one_node(self) -> None:
        [found] = validate(Ports.of_names(["x"]), {"x": [1, 2]}, "f").values()
        assert isinstance(found, List)


class TestNamespaces:
    def test_labels(self) -> None:
        a, b, c, d = (Int(number) for number in range(4))
        given = {"first": [a, b], "second": {"inner": c}, "third": d, "plain": 5}
        assert is_namespace(given)
        labelled = flatten("port", given, "f: port")
        assert list(labelled) == [
            "port__first__0",
            "port__first__1",
            "port__second__inner",
            "port__third",
            "port__plain",
        ]
        assert labelled["port__first__1"] is b
        assert labelled["port__plain"].value == 5
        plain = unflatten({label: data.value for label, data in labelled.items()})
        assert plain == {"port": {"first": [0, 1], "second": {"inner": 2}, "third": 3, "plain": 5}}

    def test_more_than_ten_keep_their_order(self) -> None:
        labelled = flatten("x", [Int(number) for number in range(12)], "x")
        shuffled = dict(sorted((label, data.value) for label, data in labelled.items()))
        assert unflatten({**shuffled, "y": 1}) == {"x": list(range(12)), "y": 1}

    def test_a_value_that_is_a_dict_stays_one(self) -> None:
        assert unflatten({"x": {"0": 1}, "y__a": {"0": 2}}) == {"x": {"0": 1}, "y": {"a": {"0": 2}}}

    @pytest.mark.parametrize("name", ["a__b", "_a", "a_", "0", "a b", "", 3, "é", "a\0"])
    def test_a_name_that_would_not_come_back_is_refused(self, name: Any) -> None:
        with pytest.raises(InputInvalid, match="a key that is a name"):
            flatten("x", {name: Int(1)}, "x")

    def test_an_item_that_is_no_data_is_named(self) -> None:
        with pytest.raises(InputInvalid) as refused:
            flatten("x", [Int(1), {"a": [Int(1), object()]}], "f: x")
        assert refused.value.port == "f: x[1]['a'][1]"

    def test_what_is_no_namespace(self) -> None:
        for value in ([1, [2]], {"a": 1}, Int(1), "ab", [], {}):
            assert not is_namespace(value)


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,2}(_[a-z0-9]{1,2})?", fullmatch=True)
TREES = st.recursive(
    st.integers(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=12) | st.dictionaries(NAMES, inner, min_size=1, max_size=4)
    ),
    max_leaves=15,
)


def as_nodes(tree: Any) -> Any:
    if isinstance(tree, list):
        return [as_nodes(item) for item in tree]
    if isinstance(tree, dict):
        return {name: as_nodes(item) for name, item in tree.items()}
    return Int(tree)


@given(st.dictionaries(NAMES, TREES, max_size=3))
def test_unflatten_undoes_flatten(ports: dict[str, Any]) -> None:
    labelled = {}
    for port, tree in ports.items():
        labelled.update(flatten(checked_name(port, "f"), as_nodes(tree), port))
    assert unflatten({label: data.value for label, data in labelled.items()}) == ports
