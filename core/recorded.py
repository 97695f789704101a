"""Recipes and inputs from the record: what lets a campaign go on without the script that began it."""

from __future__ import annotations

import pickle
import pkgutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from grange.core import function_recipe, job_recipe, workchain_recipe
from grange.core.calcjob import CalcJob
from grange.core.data.convert import plain
from grange.core.errors import DatabaseUnavailable
from grange.core.files import files_of
from grange.core.fingerprint import fingerprint
from grange.core.function_recipe import FunctionRecipe
from grange.core.graph import load
from grange.core.intake import Opened
from grange.core.job_recipe import JobRecipe
from grange.core.node import Data
from grange.core.port import unflatten
from grange.core.process import Claimed, pause
from grange.core.profile import Profile
from grange.core.raised import is_interrupt, place_of, said_by
from grange.core.recipe import Recipe
from grange.core.resources import resources_of_attributes
from grange.core.runnable import workflow_recipe_of
from grange.core.shell_job import SHELL_ATTRIBUTE, ShellJob, ShellRecipe
from grange.core.workflow import FunctionWorkflowRecipe
from grange.core.workflow_recipe import WorkflowRecipe
from grange.core.workflow_rows import ClaimedWorkflow
from grange.core.workflow_rows import pause as pause_workflows
from grange.farm.runner import OwnModules
from grange.farm.source import source_of
from grange.farm.task import Resources
from grange.repository import StoreUnavailable

#: So many recipes are kept: functions that are made anew for each call must not pile up.
KEPT = 500


class CodeChanged(Exception):
    """The code of a recorded call cannot be had as it was recorded; the text says why."""


class RecordedRecipes:
    """Makes recipes again from what process nodes hold; one for all processes of the same code.

    imports_anew: for a process of grange's own, which lives on while people work on their modules: these are
    imported anew when their files have changed.
    """

    def __init__(self, profile: Profile, *, imports_anew: bool = False) -> None:
        self._profile = profile
        self._own_modules = OwnModules() if imports_anew else None
        self._made: dict[tuple[str, ...], Recipe | CodeChanged] = {}
        self._workflows: dict[tuple[str, ...], WorkflowRecipe | CodeChanged] = {}

    def group(
        self, cursor: Any, claimed: Sequence[Claimed], *, to_run: bool = True
    ) -> list[tuple[Recipe, Resources, list[Claimed]]]:
        """Processes by recipe and recorded resources.

        Those whose code cannot be had any more are paused, with the reason. to_run: false for processes
        that have run: what a function returned says what it means without the function.
        """
        groups: dict[tuple[int, Resources], tuple[Recipe, Resources, list[Claimed]]] = {}
        changed: dict[str, list[int]] = {}
        self._look_for_changes(process.attributes for process in claimed)
        for process in claimed:
            recipe = self._recipe(cursor, process, to_run)
            if isinstance(recipe, CodeChanged):
                changed.setdefault(str(recipe), []).append(process.node_id)
                continue
            resources = resources_of_attributes(process.attributes)
            groups.setdefault((id(recipe), resources), (recipe, resources, []))[2].append(process)
        for reason, ids in changed.items():
            pause(cursor, ids, reason)
        return list(groups.values())

    def open(self, cursor: Any, claimed: Sequence[Claimed]) -> dict[str, Opened]:
        """Processes that results have come for, with all that makes sense of these."""
        groups = self.group(cursor, claimed, to_run=False)
        values = load_values(self._profile, cursor, claimed)
        return {
            str(process.node_id): Opened(
                process.node_id, process.attempt, recipe, values[process.node_id], 0, process.parent_id
            )
            for recipe, _, processes in groups
            for process in processes
        }

    def of_workflows(self, cursor: Any, claimed: Sequence[ClaimedWorkflow]) -> dict[int, WorkflowRecipe]:
        """The recipe of each workflow; those whose code cannot be had are paused, with the reason.

        The code may have changed: whether it still fits the record is seen call by call.
        """
        found: dict[int, WorkflowRecipe] = {}
        reasons: list[tuple[int, str]] = []
        self._look_for_changes(process.attributes for process in claimed)
        for process in claimed:
            recipe = self._workflow(cursor, process)
            if isinstance(recipe, CodeChanged):
                reasons.append((process.node_id, str(recipe)))
            else:
                found[process.node_id] = recipe
        pause_workflows(cursor, reasons)
        return found

    def _look_for_changes(self, attributes: Iterable[Mapping[str, Any]]) -> None:
        """Forget what was made of code that may be another one now."""
        if len(self._made) + len(self._workflows) > KEPT:
            self._made.clear()
            self._workflows.clear()
        if self._own_modules is None:
            return
        for folder in {
            str(of_one.get("function_path") or of_one.get("class_path") or "") for of_one in attributes
        }:
            self._own_modules.add(folder)
        if self._own_modules.forget_changed():
            self._made.clear()
            self._workflows.clear()
        # what could not be had may be there now
        self._made = {key: made for key, made in self._made.items() if not isinstance(made, CodeChanged)}
        self._workflows = {
            key: made for key, made in self._workflows.items() if not isinstance(made, CodeChanged)
        }

    def _workflow(self, cursor: Any, process: ClaimedWorkflow) -> WorkflowRecipe | CodeChanged:
        files = files_of(process.repository_metadata)
        identity = (process.process_type, *(files.get(name, "") for name in _CODE_FILES))
        if identity not in self._workflows:
            try:
                with _had(process.process_type):
                    self._workflows[identity] = _made_workflow(process, self._pickled(cursor, files))
            except CodeChanged as changed:
                self._workflows[identity] = changed
        return self._workflows[identity]

    def _pickled(self, cursor: Any, files: Mapping[str, Any]) -> bytes | None:
        for name in (function_recipe.PICKLE_FILE, workchain_recipe.PICKLE_FILE):
            if name in files:
                return self._profile.repository.read([files[name]], self._profile.index(cursor))[0]
        return None

    def _recipe(self, cursor: Any, process: Claimed, to_run: bool) -> Recipe | CodeChanged:
        files = files_of(process.repository_metadata)
        attributes = process.attributes
        identity = (
            process.process_type,
            str(attributes.get(SHELL_ATTRIBUTE) or attributes.get("fingerprint")),
            str(to_run),
            *(files.get(name, "") for name in _CODE_FILES),
        )
        if identity not in self._made:
            names = [name for name in files if name in _CODE_FILES]
            contents = self._profile.repository.read(
                [files[name] for name in names], self._profile.index(cursor)
            )
            try:
                with _had(process.process_type):
                    self._made[identity] = _make(process, dict(zip(names, contents, strict=True)), to_run)
            except CodeChanged as changed:
                self._made[identity] = changed
        return self._made[identity]


_CODE_FILES = (
    function_recipe.SOURCE_FILE,
    function_recipe.PICKLE_FILE,
    job_recipe.SOURCE_FILE,
    job_recipe.PICKLE_FILE,
    workchain_recipe.PICKLE_FILE,
)


@contextmanager
def _had(name: str) -> Iterator[None]:
    """Around what runs code of users to have a recipe: a module, define(); whatever that raises.

    Errors: CodeChanged; StoreUnavailable, DatabaseUnavailable.
    """
    try:
        yield
    except (CodeChanged, StoreUnavailable, DatabaseUnavailable):
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise CodeChanged(f"{name} cannot be had any more: {said_by(error)}{place_of(error)}") from error


def _make(process: Claimed, files: Mapping[str, bytes], to_run: bool) -> Recipe:
    """Errors: CodeChanged."""
    attributes = process.attributes
    if SHELL_ATTRIBUTE in attributes:
        return ShellRecipe(ShellJob.from_record(attributes[SHELL_ATTRIBUTE]))
    if "function_name" in attributes:
        if to_run and function_recipe.PICKLE_FILE not in files:
            name = f"{attributes['function_namespace']}:{attributes['function_name']}"
            function = _imported(name, attributes["function_path"])
            _check_unchanged(function, attributes, files.get(function_recipe.SOURCE_FILE), name)
        return FunctionRecipe.from_record(attributes, files)
    name, path = process.process_type, attributes["class_path"]
    if job_recipe.PICKLE_FILE in files:
        job_class = _unpickled(files[job_recipe.PICKLE_FILE], path, name)
    else:
        job_class = _imported(name, path)
        _check_unchanged(job_class, attributes, files.get(job_recipe.SOURCE_FILE), name)
    if not (isinstance(job_class, type) and issubclass(job_class, CalcJob)):
        raise CodeChanged(f"{name} is no CalcJob any more")
    recipe = JobRecipe(job_class)
    recipe.files = files
    return recipe


def _made_workflow(process: ClaimedWorkflow, pickled: bytes | None) -> WorkflowRecipe:
    """Errors: CodeChanged."""
    attributes = process.attributes
    path = attributes.get("function_path") or attributes.get("class_path") or ""
    if "function_name" in attributes:
        name = f"{attributes['function_namespace']}:{attributes['function_name']}"
    else:
        name = process.process_type
    code: Any = _unpickled(pickled, path, name) if pickled is not None else _imported(name, path)
    recipe = workflow_recipe_of(code)
    if recipe is None and callable(code) and "function_name" in attributes:
        recipe = FunctionWorkflowRecipe(code)
    if recipe is None:
        raise CodeChanged(f"{process.process_type} is no workflow any more")
    return recipe


def _let_import_from(path: str) -> None:
    """Let modules that lay beside the script be found; what is found already stays what it is."""
    if path and path not in sys.path:
        sys.path.append(path)


def _unpickled(content: bytes, path: str, name: str) -> object:
    _let_import_from(path)
    try:
        # Our own pickle, from our own repository: as far to be trusted as the profile itself.
        return pickle.loads(content)  # noqa: S301
    except BaseException as error:  # a module that it needs is gone, or another one
        if is_interrupt(error):
            raise
        raise CodeChanged(
            f"{name} cannot be made again from the record: {type(error).__name__}: {error}"
        ) from error


def _imported(name: str, path: str) -> object:
    """What a dotted name, with or without a colon behind its module, stands for."""
    _let_import_from(path)
    try:
        value = pkgutil.resolve_name(name)
    except BaseException as error:  # whatever a module that is being worked on raises
        if is_interrupt(error):
            raise
        shown = name.replace(":", ".")
        raise CodeChanged(f"{shown} cannot be imported here: {type(error).__name__}: {error}") from error
    return getattr(value, "__wrapped__", value)


def _check_unchanged(code: object, attributes: Mapping[str, Any], source: bytes | None, name: str) -> None:
    """Running other code under the recorded name would make the record a lie.

    Errors: CodeChanged.
    """
    if fingerprint(code).hex() == attributes["fingerprint"]:
        return
    now = textwrap.dedent(source_of(code)).encode("utf-8", "replace")
    what = "the source of" if now != (source or b"") else "something that is used by"
    shown = name.replace(":", ".")
    raise CodeChanged(f"{what} {shown} has changed since this call was recorded: map it again")


def load_values(profile: Profile, cursor: Any, claimed: Sequence[Claimed]) -> dict[int, dict[str, object]]:
    """The plain input values of processes: every data node loaded once."""
    ids = sorted({node_id for process in claimed for _, node_id in process.inputs})
    nodes = load(cursor, ids, reader=profile.read_files)
    values = {node.id: plain(node) for node in nodes if isinstance(node, Data)}
    return {
        process.node_id: unflatten({label: values[node_id] for label, node_id in process.inputs})
        for process in claimed
    }
