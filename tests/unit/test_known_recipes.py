"""Recipes that are made once for as long as the code stays the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import grange as gr
from grange.core import known_recipes
from grange.core.known_recipes import KnownRecipes

FACTOR = 2


def scaled(x: int) -> int:
    return FACTOR * x


class Program(gr.CalcJob):
    class Inputs:
        x: int

    def prepare(self, inputs: object) -> gr.Command:
        return gr.Command(["/bin/true"])


@pytest.mark.parametrize("code", [scaled, Program])
def test_it_is_made_once(code: object) -> None:
    recipes = KnownRecipes()
    assert recipes.of(code) is recipes.of(code)  # type: ignore[arg-type]


def test_it_is_made_again_when_something_that_is_used_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = KnownRecipes()
    before = recipes.of(scaled)
    monkeypatch.setitem(globals(), "FACTOR", 3)
    after = recipes.of(scaled)
    assert before.attributes["fingerprint"] != after.attributes["fingerprint"]


def test_functions_that_are_made_anew_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_recipes, "KEPT", 3)
    recipes = KnownRecipes()

    def made(number: int) -> Callable[[int], int]:
        def function(x: int) -> int:
            return x + number

        return function

    found = [recipes.of(made(number)) for number in range(10)]
    assert len({one.attributes["fingerprint"] for one in found}) == 10
    assert len(recipes._known) <= 3
