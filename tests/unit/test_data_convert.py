"""From values to data, as annotations ask for it."""

from __future__ import annotations

import enum
import math
import pathlib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, Union

import ase
import ase.build
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.core.data import (
    Array,
    Bool,
    Dict,
    Enum,
    Float,
    Folder,
    InstalledCode,
    Int,
    List,
    Null,
    SingleFile,
    Str,
    Structure,
)
from grange.core.data.convert import from_typed, plain, to_data
from grange.core.errors import InputInvalid
from grange.core.node import Data
from grange.repository.key import key_of


class Spin(enum.Enum):
    UP = "up"
    DOWN = "down"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    A = "a"


CU = ase.build.bulk("Cu")
Energy = NewType("Energy", float)
T = typing.TypeVar("T", bound=int)


def _shown(value: object) -> str:
    """A test's parameter in its name, which must be the same in every process: without addresses."""
    return str(value).split(" object at 0x")[0]


@pytest.mark.parametrize(
    ("value", "cls"),
    [
        (3, Int),
        (3.5, Float),
        ("a", Str),
        (True, Bool),
        (None, Null),
        ([1], List),
        ((1, 2), List),
        ({"a": 1}, Dict),
        (Spin.UP, Enum),
        (Level.LOW, Enum),
        (Word.A, Enum),
        (np.int64(3), Int),
        (np.float64(3), Float),
        (np.float32(3), Float),
        (np.bool_(True), Bool),
        (np.str_("a"), Str),
        (np.zeros(3), Array),
        (np.array(3.0), Array),
        (CU, Structure),
    ],
)
def test_without_annotation_the_value_decides(value: object, cls: type[Data]) -> None:
    for annotation in (None, Any, object, Data):
        assert type(to_data(value, "x", annotation)) is cls


def test_data_stays_what_it_is() -> None:
    node = InstalledCode("/bin/true")
    assert to_data(node, "x") is node
    assert to_data(node, "x", InstalledCode) is node
    structure = Structure(CU)
    assert to_data(structure, "x", ase.Atoms) is structure


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 3, 3),
        (int, np.int8(3), 3),
        (int, Level.LOW, 1),
        (list[Literal["a", 1]], ["a", 1], ["a", 1]),
        (float, 3, 3.0),
        (float, np.float32(0.5), 0.5),
        (np.float64, 3, 3.0),
        (str, "a", "a"),
        (bool, np.bool_(True), True),
        (list, (1, "a"), [1, "a"]),
        (tuple, (1, "a"), [1, "a"]),
        (list[float], [1, np.float64(2)], [1.0, 2.0]),
        (tuple[int, str], (1, "a"), [1, "a"]),
        (tuple[int, ...], (1, 2, 3), [1, 2, 3]),
        (Sequence[int], [1], [1]),
        (dict, {"a": 1}, {"a": 1}),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (Mapping[str, list[int]], {"a": [1]}, {"a": [1]}),
        (list[list[float]], [[1, 2], []], [[1.0, 2.0], []]),
        (list[int | None], [1, None], [1, None]),
        (list[dict[str, Any]], [{"a": None}], [{"a": None}]),
        (Optional[int], 3, 3),  # noqa: UP045
        (Optional[int], None, None),  # noqa: UP045
        (int | float, 3, 3),
        (float | int, 3, 3),
        (Union[float, str], 3, 3.0),  # noqa: UP007
        (int | list[float], [1], [1.0]),
        (Literal["a", "b", 3], "b", "b"),
        (Literal["a", "b", 3], 3, 3),
        (Annotated[float, "eV"], 3, 3.0),
        (Energy, 3, 3.0),
        (T, 3, 3),
        (Spin, Spin.UP, Spin.UP),
        (enum.Enum, Spin.UP, Spin.UP),
        (None, None, None),
        (type(None), None, None),
    ],
    ids=_shown,
)
def test_taken(annotation: object, value: object, expected: object) -> None:
    taken = plain(to_data(value, "x", annotation))
    assert taken == expected
    assert type(taken) is type(expected)
    if isinstance(expected, list):
        assert [type(item) for item in taken] == [type(item) for item in expected]
    again = to_data(to_data(value, "x", annotation), "x", annotation)  # the node of it is taken as well
    assert plain(again) == expected


@pytest.mark.parametrize(
    ("annotation", "value", "expected", "port"),
    [
        (int, True, "int", "x"),
        (int, 3.0, "int", "x"),
        (int, "3", "int", "x"),
        (int, None, "int", "x"),
        (int, Float(3), "int", "x"),
        (float, True, "float", "x"),
        (float, "3", "float", "x"),
        (float, Str("3"), "float", "x"),
        (str, 3, "str", "x"),
        (str, Path("a"), "str", "x"),
        (str, "\0", "NUL", "x"),
        (bool, 1, "bool", "x"),
        (bool, Int(1), "bool", "x"),
        (list, "ab", "list", "x"),
        (list, {"a": 1}, "list", "x"),
        (list[float], [1, "b"], "float", "x[1]"),
        (list[float], [1, math.nan], "finite", "x[1]"),
        (list[float], List([1, "b"]), "float", "x[1]"),
        (list[list[int]], [[1], [2.5]], "int", "x[1][0]"),
        (dict[str, int], {"a": 1.5}, "int", "x['a']"),
        (dict[str, int], {1: 1}, "a string as key", "x: key 1"),
        (dict[str, int], [1], "dict", "x"),
        (dict[str, int], Dict({"a": "b"}), "int", "x['a']"),
        (tuple[int, str], (1,), "a tuple of 2", "x"),
        (list[int], 3, r"list\[int\]", "x"),
        (int | None, "a", "int or None", "x"),
        (list[int] | None, [1, "b"], "int", "x[1]"),
        (int | str, 1.5, "int or str", "x"),
        (list[int | None], ["a"], "int or None", "x[0]"),
        (list[Literal["a"]], ["b"], "one of 'a'", "x[0]"),
        (list[ase.Atoms], [CU], "a data node", "x[0]"),
        (Literal["a", "b"], "c", "one of 'a', 'b'", "x"),
        (Literal[1], True, "one of 1", "x"),
        (Spin, "up", r"a member of Spin \(UP, DOWN\)", "x"),
        (Spin, Level.LOW, "a member of Spin", "x"),
        (Structure, "Cu", "ase.Atoms", "x"),
        (ase.Atoms, [1], "ase.Atoms", "x"),
        (ase.Atoms, ase.Atoms("Cu", pbc=True), "a cell", "x"),
        (np.ndarray, [1.0], "numpy.ndarray", "x"),
        (npt.NDArray[np.float64], [1.0], "numpy.ndarray", "x"),
        (np.ndarray, np.array([object()]), "holds objects", "x"),
        (Path, "/etc/passwd", "pathlib.Path", "x"),
        (Path, Path("/no/such"), "exists", "x"),
        (SingleFile, Path("/etc"), "a file", "x"),
        (Folder, Path("/etc/passwd"), "a folder", "x"),
        (InstalledCode, "/bin/true", "a node of the class InstalledCode", "x"),
        (None, 3, "None", "x"),
        (Any, object(), "a value that can be recorded", "x"),
        (Any, b"bytes", "a value that can be recorded", "x"),
        (Any, 1j, "a value that can be recorded", "x"),
        (Any, {1, 2}, "a value that can be recorded", "x"),
    ],
    ids=_shown,
)
def test_refused(annotation: object, value: object, expected: str, port: str) -> None:
    """With the port, the value and what was expected."""
    if annotation is None:
        annotation = type(None)
    with pytest.raises(InputInvalid, match=expected) as refused:
        to_data(value, "x", annotation)
    assert refused.value.port == port


def test_a_function_that_raises_in_repr_is_still_told_apart() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(InputInvalid, match="cannot be shown"):
        to_data(Hostile(), "x", int)


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    file = to_data(tmp_path / "a.txt", "x", pathlib.Path)
    assert isinstance(file, SingleFile)
    assert file.value.name == "a.txt"
    assert file.value.read_text() == "hello"
    folder = to_data(tmp_path, "x", Path)
    assert isinstance(folder, Folder)
    assert folder.value == {"a.txt": b"hello"}
    assert isinstance(to_data(file.value, "x", SingleFile), SingleFile)
    assert isinstance(to_data(tmp_path, "x", Folder), Folder)


def test_arrays() -> None:
    array = np.arange(6.0).reshape(2, 3)
    for annotation in (np.ndarray, npt.NDArray[np.float64], Array):
        node = to_data(array, "x", annotation)
        assert (plain(node) == array).all()


@pytest.mark.parametrize(
    ("typed", "cls", "value"),
    [
        (["int", 3], Int, 3),
        (["float", 1.5], Float, 1.5),
        (["float", "Infinity"], Float, math.inf),
        (["float", "-Infinity"], Float, -math.inf),
        (["str", "NaN"], Str, "NaN"),
        (["bool", True], Bool, True),
        (["list", [1, [2]]], List, [1, [2]]),
        (["dict", {"a": None}], Dict, {"a": None}),
        (["structure", Structure(CU).attributes], Structure, CU),
    ],
)
def test_typed_values(typed: list[Any], cls: type[Data], value: object) -> None:
    node = from_typed(typed, "x")
    assert type(node) is cls
    assert node.value == value


def test_typed_nan() -> None:
    assert math.isnan(from_typed(["float", "NaN"], "x").value)


def test_typed_values_that_lie_in_a_result_pack() -> None:
    array = np.eye(2)
    made = Array(array)
    key = made.key_of_file("default.npy")
    node = from_typed(["array", {"name": "default", "key": key, "dtype": "<f8", "shape": [2, 2]}], "x")
    assert isinstance(node, Array)
    assert node.shape() == (2, 2)
    assert node.content_hash() == made.content_hash()
    file = from_typed(["file", {"name": "out.dat", "key": key_of(b"x")}], "x")
    assert isinstance(file, SingleFile)
    assert file.content_hash() == SingleFile(b"x", "out.dat").content_hash()


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["int"],
        ["complex", 1],
        3,
        ["int", "3"],
        ["float", "3"],
        ["bool", 1],
        ["list", {}],
        ["dict", []],
        ["structure", {"cell": []}],
        [["int"], 3],
    ],
    ids=_shown,
)
def test_what_is_no_typed_value(typed: Any) -> None:
    with pytest.raises(InputInvalid, match=r"^out: "):
        from_typed(typed, "out")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('a\t\\\n"é'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab\\\n"), inner),
    max_leaves=10,
)


@given(VALUES)
def test_plain_undoes_to_data(value: object) -> None:
    taken = plain(to_data(value, "x"))
    assert taken == value
    assert type(taken) is type(value)
