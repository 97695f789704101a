from __future__ import annotations

from typing import Any

import pytest

from grange.core.formula import formula
from grange.summary import clipped, short_value, type_name


def _structure(*symbols: str) -> dict[str, Any]:
    kinds = [{"name": s, "symbols": [s], "weights": [1.0], "mass": 1.0} for s in dict.fromkeys(symbols)]
    return {"kinds": kinds, "sites": [{"kind_name": s, "position": [0, 0, 0]} for s in symbols]}


@pytest.mark.parametrize(
    ("node_type", "name"),
    [
        ("data.core.int.Int.", "Int"),
        ("process.calculation.calcfunction.CalcFunctionNode.", "calcfunction"),
        ("process.workflow.workchain.WorkChainNode.", "workchain"),
        ("data.somebody.else.ThingData.", "ThingData"),
        ("", "data"),
    ],
)
def test_type_name(node_type: str, name: str) -> None:
    assert type_name(node_type) == name


@pytest.mark.parametrize(
    ("node_type", "attributes", "text"),
    [
        ("data.core.float.Float.", {"value": -17.123456789}, "-17.123457"),
        ("data.core.float.Float.", {"value": "Infinity"}, '"Infinity"'),
        ("data.core.bool.Bool.", {"value": True}, "true"),
        ("data.core.str.Str.", {"value": "a b"}, '"a b"'),
        ("data.core.list.List.", {"list": [1, 2.5, None]}, "[1, 2.5, null]"),
        ("data.core.list.List.", {"list": list(range(99))}, "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 … 9…"),
        ("data.core.dict.Dict.", {"value": 1, "b": {"c": []}}, "{value: 1, b: {c: []}}"),
        ("data.core.dict.Dict.", {}, ""),
        ("data.core.array.ArrayData.", {"array|forces": [4, 3], "array|e": []}, "e scalar, forces 4×3"),
        ("data.core.singlefile.SinglefileData.", {"filename": "out.dat"}, "out.dat"),
        ("data.core.structure.StructureData.", _structure("Ni", "Al", "Ni", "Ni"), "AlNi3 · 4 sites"),
        ("data.core.structure.StructureData.", None, "(large)"),
    ],
)
def test_short_value(node_type: str, attributes: dict[str, Any] | None, text: str) -> None:
    assert short_value(node_type, attributes, 42) == text


def test_a_formula_is_in_the_order_of_hill() -> None:
    assert formula(_structure("O", "H", "C", "H", "H", "H")) == "CH4O"
    assert formula(_structure("O", "H", "H")) == "H2O"


def test_a_site_that_is_shared_or_partly_empty_is_in_braces() -> None:
    kind = {"name": "X", "symbols": ["Al", "Ni"], "weights": [0.5, 0.25]}
    assert formula({"kinds": [kind], "sites": [{"kind_name": "X"}] * 2}) == "{Al0.5Ni0.25}2"


def test_what_cannot_be_printed_cannot_move_the_cursor() -> None:
    assert clipped("a\x1b[2J\nb\0", 80) == "a\N{REPLACEMENT CHARACTER}[2J b\N{REPLACEMENT CHARACTER}"
