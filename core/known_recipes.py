"""Recipes of what a workflow calls again and again: made once, for as long as the code stays the same."""

from __future__ import annotations

from dataclasses import dataclass

from grange.core.fingerprint import fingerprint
from grange.core.recipe import Recipe
from grange.core.runnable import Runnable, recipe_of
from grange.core.shell_job import ShellJob

#: So many are kept; functions that are made anew for each call must not pile up.
KEPT = 256


@dataclass(frozen=True, slots=True)
class _Known:
    """runnable: kept, so that nothing else gets its id."""

    runnable: Runnable
    fingerprint: bytes
    recipe: Recipe


class KnownRecipes:
    """Gives what recipe_of() does. Used by one thread."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def of(self, runnable: Runnable) -> Recipe:
        """The recipe of what the farm is to run. Errors: InputInvalid, FunctionNotShippable."""
        if isinstance(runnable, ShellJob) or not callable(runnable):
            return recipe_of(runnable)
        known = self._known.get(id(runnable))
        now = fingerprint(runnable)
        if known is None or known.fingerprint != now:
            known = _Known(runnable, now, recipe_of(runnable))
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[id(runnable)] = known
        return known.recipe
