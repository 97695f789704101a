"""Data of plain values: what is taken, what is refused, and what comes out again."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.core.data import Bool, Dict, Enum, Float, Int, List, Null, Str
from grange.core.errors import InputInvalid, NodeImmutable, NotFound
from grange.core.json_value import decoded, encoded, for_database
from grange.core.node import Data


class Colour(enum.Enum):
    RED = "r"
    GREEN = (1, 2)
    ODD = object


class Size(enum.IntEnum):
    SMALL = 1


@pytest.mark.parametrize(
    ("node", "value", "attributes", "node_type"),
    [
        (Int(3), 3, {"value": 3}, "data.core.int.Int."),
        (Int(-(2**200)), -(2**200), {"value": -(2**200)}, "data.core.int.Int."),
        (Int(np.int32(3)), 3, {"value": 3}, "data.core.int.Int."),
        (Float(1.5), 1.5, {"value": 1.5}, "data.core.float.Float."),
        (Float(2), 2.0, {"value": 2.0}, "data.core.float.Float."),
        (Float(np.float32(0.5)), 0.5, {"value": 0.5}, "data.core.float.Float."),
        (Float(math.inf), math.inf, {"value": "Infinity"}, "data.core.float.Float."),
        (Float(-math.inf), -math.inf, {"value": "-Infinity"}, "data.core.float.Float."),
        (Str("a\té\\"), "a\té\\", {"value": "a\té\\"}, "data.core.str.Str."),
        (Str(np.str_("a")), "a", {"value": "a"}, "data.core.str.Str."),
        (Bool(True), True, {"value": True}, "data.core.bool.Bool."),
        (Bool(np.bool_(False)), False, {"value": False}, "data.core.bool.Bool."),
        (List([1, (2.5, None)]), [1, [2.5, None]], {"list": [1, [2.5, None]]}, "data.core.list.List."),
        (Dict({"a": {"b": []}}), {"a": {"b": []}}, {"a": {"b": []}}, "data.core.dict.Dict."),
        (Null(), None, {}, "data.core.none.NoneData."),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_value_and_attributes(node: Data, value: object, attributes: dict[str, Any], node_type: str) -> None:
    assert node.value == value
    assert type(node.value) is type(value)
    assert node.attributes == attributes
    assert node.node_type == node_type


def test_nan() -> None:
    node = Float(math.nan)
    assert node.attributes == {"value": "NaN"}
    assert math.isnan(node.value)


@pytest.mark.parametrize(
    ("make", "value", "expected"),
    [
        (Int, True, "int"),
        (Int, 1.0, "int"),
        (Int, "1", "int"),
        (Int, None, "int"),
        (Int, np.float64(1), "int"),
        (Float, True, "float"),
        (Float, "1.0", "float"),
        (Float, 1j, "float"),
        (Float, 10**400, "double precision"),
        (Str, 1, "str"),
        (Str, b"a", "str"),
        (Str, "a\0b", "NUL"),
        (Str, "\ud800", "surrogate"),
        (Bool, 1, "bool"),
        (Bool, "yes", "bool"),
        (List, "abc", "list"),
        (List, {1}, "list"),
        (Dict, [("a", 1)], "dict"),
        (Enum, "RED", "a member of an enumeration"),
        (Enum, Colour.ODD, "JSON"),
    ],
)
def test_refused(make: Any, value: object, expected: str) -> None:
    with pytest.raises(InputInvalid, match=expected):
        make(value)


def test_an_integer_that_could_not_be_read_back_is_refused_without_writing_it_out() -> None:
    assert Int(2**14000).value == 2**14000
    with pytest.raises(InputInvalid, match=r"at most 14284 bits, got an integer of 100001 bits"):
        Int(2**100_000)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([1, [2, math.nan]], "value[1][1]"),
        ([math.inf], "value[0]"),
        ([{"a": {"b": object()}}], "value[0]['a']['b']"),
        ([np.float64("nan")], "value[0]"),
        ([np.zeros(2)], "value[0]"),
        ([b"x"], "value[0]"),
        (["a\0"], "value[0]"),
        ([{"x": ["\udfff"]}], "value[0]['x'][0]"),
        ([{1: 2}], "value[0]: key 1"),
        ([2**20000], "value[0]"),
    ],
)
def test_the_path_to_what_is_no_json_is_named(value: list[Any], path: str) -> None:
    with pytest.raises(InputInvalid) as refused:
        List(value)
    assert refused.value.port == path


def test_a_key_with_nul_is_refused() -> None:
    with pytest.raises(InputInvalid, match="NUL"):
        Dict({"a\0": 1})


def test_what_is_nested_without_end_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InputInvalid, match="levels of nesting"):
        List(endless)


def test_numpy_scalars_and_subclasses_become_plain() -> None:
    node = List([np.int64(1), np.float64(0.5), np.bool_(True), np.str_("a"), Size.SMALL, OrderedDict(a=1)])
    assert node.value == [1, 0.5, True, "a", 1, {"a": 1}]
    assert [type(item) for item in node.value] == [int, float, bool, str, int, dict]


def test_the_value_is_a_copy_on_the_way_in_and_out() -> None:
    given = {"a": [1]}
    node = Dict(given)
    given["a"].append(2)
    node.value["a"].append(3)
    node.attributes["a"].append(4)
    assert node.value == {"a": [1]}


def test_the_value_cannot_be_assigned() -> None:
    for node in (Int(1), Dict({}), Data.from_attributes({})):
        with pytest.raises(NodeImmutable, match="make a new node"):
            node.value = 2  # type: ignore[misc]


def test_reading_items() -> None:
    assert Dict({"a": [1]})["a"] == [1]
    assert "a" in Dict({"a": 1})
    assert List([1, [2]])[1] == [2]
    assert list(List(["ab"])) == ["ab"]
    assert len(List([1, 2])) == 2
    assert List([])


def test_enumeration_member() -> None:
    node = Enum(Colour.GREEN)
    assert node.value is Colour.GREEN
    assert node.attributes == {"name": "GREEN", "value": [1, 2], "identifier": f"{__name__}:Colour"}


def test_enumeration_that_is_gone() -> None:
    node = Enum.from_attributes({"name": "BLUE", "value": 3, "identifier": f"{__name__}:Colour"})
    with pytest.raises(NotFound, match=r"BLUE of .*Colour is not to be had here"):
        _ = node.value
    with pytest.raises(NotFound):
        _ = Enum.from_attributes({"name": "A", "value": 3, "identifier": "no.such.module:A"}).value


def test_a_local_enumeration_is_refused() -> None:
    local = enum.Enum("local", "A")
    local.__qualname__ = "test.<locals>.local"
    with pytest.raises(InputInvalid, match="local"):
        Enum(local.A)


def test_equal_content_has_an_equal_hash() -> None:
    assert Dict({"a": 1, "b": 2}, label="x").content_hash() == Dict({"b": 2, "a": 1}).content_hash()
    assert len(Int(1).content_hash()) == 32
    different = [
        Int(1),
        Float(1),
        Bool(True),
        Str("1"),
        List([1]),
        List([1.0]),
        Dict({"value": 1}),
        Null(),
        Dict({}),
    ]
    assert len({node.content_hash() for node in different}) == len(different)
    assert Float(0.0).content_hash() == Float(-0.0).content_hash()


def test_the_hash_is_the_same_in_every_release() -> None:
    """What was stored years ago has to be found again: this must never change."""
    assert Int(1).content_hash().hex() == "54df60000691c8d3a8defde145c1d293fde6db318fd28663f3c4b0c258ecd101"
    assert (
        Dict({"b": [1e22, "é"], "a": None}).content_hash().hex()
        == "57ce427cc3ae83385478b9a88e0341fcfb2069c64ecd10467438d60ab0d25e56"
    )


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | FLOATS
    | st.text(st.characters(exclude_characters="\0", codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('ab"\\e1\n'), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_comes_back_as_it_was(value: object) -> None:
    assert List([value]).value == [value]
    assert decoded(encoded(value)) == value
    text = for_database(encoded(value))
    assert decoded(text) == value
    assert encoded(decoded(text)) == encoded(value)


@given(FLOATS)
def test_no_float_is_written_with_a_positive_exponent(value: float) -> None:
    """jsonb would give it back as an integer."""
    text = for_database(encoded([value]))
    assert b"." in text or b"e-" in text
    assert decoded(text) == [value]
    assert not any(b"e%d" % digit in text for digit in range(1, 10))
