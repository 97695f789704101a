"""What can be run: which recipe a function, a class or a job has, and the calls that are made of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from grange.core.caching import CachingRules, caching_of
from grange.core.calcjob import CalcJob
from grange.core.call_binding import given_profile
from grange.core.calls import Calls, Fixed, is_column, materialised
from grange.core.errors import InputInvalid
from grange.core.function_recipe import FunctionRecipe
from grange.core.job_recipe import JobRecipe
from grange.core.recipe import Recipe
from grange.core.shell_job import CODE, ShellJob, ShellRecipe
from grange.farm.task import Resources

if TYPE_CHECKING:
    from grange.core.profile import Profile
    from grange.core.workflow_recipe import Given, WorkflowRecipe

Runnable = Callable[..., object] | type[CalcJob] | ShellJob

#: What workflow functions and WorkChain classes have: their WorkflowRecipe, or a function that gives it.
RECIPE_ATTRIBUTE = "__grange_recipe__"


def recipe_of(runnable: Runnable) -> Recipe:
    """The recipe of what the farm is to run. Errors: InputInvalid, FunctionNotShippable."""
    if isinstance(runnable, ShellJob):
        return ShellRecipe(runnable)
    if isinstance(runnable, type) and issubclass(runnable, CalcJob):
        return JobRecipe(runnable)
    if isinstance(runnable, type) or not callable(runnable):
        raise InputInvalid(
            "to be run", runnable, "a function or workflow, a CalcJob or WorkChain class, or a ShellJob"
        )
    return FunctionRecipe.of(runnable)


def workflow_recipe_of(runnable: object) -> WorkflowRecipe | None:
    """The recipe of a workflow function or a WorkChain class; None for what the farm runs."""
    found: Any = getattr(runnable, RECIPE_ATTRIBUTE, None)
    return cast("WorkflowRecipe | None", found() if callable(found) else found)


def calls_of(
    profile: Profile | None,
    runnable: Runnable,
    inputs: Mapping[str, object],
    *,
    product: bool = False,
    one: bool = False,
    resources: Resources = Resources(),  # noqa: B008 – frozen
    cache: bool | None = None,
    recipe: Recipe | None = None,
) -> Calls:
    """The calls of what the farm is to run, checked.

    inputs: columns that are gone through, as Campaign.map takes them; where one is true, one value each.
    cache: None for what blocks, profile.toml and the code itself say. profile: None for calls that nobody
    will record, of what names no code of a profile. recipe: of the runnable, where it is known.
    Errors: InputInvalid; NotFound for a code that is not there; FunctionNotShippable.
    """
    if recipe is None:
        recipe = recipe_of(runnable)
    implied: dict[str, object] = {}
    if isinstance(recipe, ShellRecipe):
        implied |= recipe.implied()
        if recipe.code_name:
            implied[CODE] = given_profile(profile, recipe.label).load_code(recipe.code_name)
    if isinstance(recipe, JobRecipe):  # a job's defaults are inputs like others
        implied |= {
            name: Fixed(value) for name, value in recipe.ports.defaults().items() if value is not None
        }
    given = {**inputs, **{name: value for name, value in implied.items() if name not in inputs}}
    if one:
        given = {
            name: value if isinstance(value, Fixed) else Fixed(value)
            for name, value in given.items()
            if value is not None
        }
    rules = CachingRules() if profile is None else profile.config.caching
    caching = caching_of(rules, recipe.process_type, recipe.label, declared=recipe.caching, wanted=cache)
    return Calls(recipe, given, product=product, resources=resources, caching=caching)


def columns_of(
    label: str, columns: Mapping[str, object], *, product: bool = False
) -> Iterator[dict[str, object]]:
    """The inputs of many calls of a workflow: columns gone through in step, or in every combination.

    Which inputs are columns is as for Campaign.map: lists and the like are, gr.fixed([…]) is not.
    Errors: InputInvalid for columns of different lengths.
    """
    constants = {
        name: value.value if isinstance(value, Fixed) else value
        for name, value in columns.items()
        if not is_column(value)
    }
    varied = {name: materialised(value) for name, value in columns.items() if is_column(value)}
    lengths = {name: len(column) for name, column in varied.items()}
    if not product and len(set(lengths.values())) > 1:
        raise InputInvalid(
            f"{label}: lengths",
            lengths,
            "as many values for each input, or product=True for every combination",
        )
    gone_through: Iterator[tuple[object, ...]]
    if product or not varied:
        gone_through = itertools.product(*varied.values())
    else:
        gone_through = zip(*varied.values(), strict=True)
    for values in gone_through:
        yield {**constants, **dict(zip(varied, values, strict=True))}


def givens_of(
    recipe: WorkflowRecipe, columns: Mapping[str, object], *, product: bool = False
) -> Iterator[Given]:
    """The checked inputs of many calls of a workflow; what is one value for all of them is one node.

    Errors: InputInvalid, InputMissing.
    """
    constants = [name for name, value in columns.items() if not is_column(value)]
    shared: dict[str, object] = {}
    for inputs in columns_of(recipe.label, columns, product=product):
        given = recipe.given({**inputs, **shared})
        if not shared:
            shared = {name: given.nodes[name] for name in constants if name in given.nodes}
        yield given
