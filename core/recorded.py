"""Recipes and inputs from the record: what lets a campaign go on without the script that began it."""

from __future__ import annotations

import pickle
import pkgutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from grange.core import function_recipe, job_recipe
from grange.core.calcjob import CalcJob
from grange.core.data.convert import plain
from grange.core.fingerprint import source_of
from grange.core.function_recipe import FunctionRecipe
from grange.core.graph import load
from grange.core.intake import Opened
from grange.core.job_recipe import JobRecipe
from grange.core.node import Data
from grange.core.port import unflatten
from grange.core.process import Claimed, pause
from grange.core.profile import Profile
from grange.core.recipe import Recipe
from grange.core.shell_job import SHELL_ATTRIBUTE, ShellJob, ShellRecipe
from grange.repository import Key


class CodeChanged(Exception):
    """The code of a recorded call cannot be had as it was recorded; the text says why."""


class RecordedRecipes:
    """Makes recipes again from what process nodes hold; one for all processes of the same code."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._made: dict[tuple[str, ...], Recipe | CodeChanged] = {}

    def group(self, cursor: Any, claimed: Sequence[Claimed]) -> list[tuple[Recipe, list[Claimed]]]:
        """Processes by recipe. Those whose code has changed are paused, with the reason."""
        groups: dict[int, tuple[Recipe, list[Claimed]]] = {}
        for process in claimed:
            recipe = self._recipe(cursor, process)
            if isinstance(recipe, CodeChanged):
                pause(cursor, [process.node_id], str(recipe))
                continue
            groups.setdefault(id(recipe), (recipe, []))[1].append(process)
        return list(groups.values())

    def open(self, cursor: Any, claimed: Sequence[Claimed]) -> dict[str, Opened]:
        """Processes that results have come for, with all that makes sense of these."""
        groups = self.group(cursor, claimed)
        values = load_values(self._profile, cursor, claimed)
        return {
            str(process.node_id): Opened(process.node_id, process.attempt, recipe, values[process.node_id], 0)
            for recipe, processes in groups
            for process in processes
        }

    def _recipe(self, cursor: Any, process: Claimed) -> Recipe | CodeChanged:
        files = file_keys(process.repository_metadata)
        attributes = process.attributes
        identity = (
            process.process_type,
            str(attributes.get(SHELL_ATTRIBUTE, "")),
            *(files.get(name, "") for name in _CODE_FILES),
        )
        if identity not in self._made:
            names = [name for name in files if name in _CODE_FILES]
            contents = self._profile.repository.read(
                [files[name] for name in names], self._profile.index(cursor)
            )
            try:
                self._made[identity] = _make(process, dict(zip(names, contents, strict=True)))
            except CodeChanged as changed:
                self._made[identity] = changed
        return self._made[identity]


_CODE_FILES = (
    function_recipe.SOURCE_FILE,
    function_recipe.PICKLE_FILE,
    job_recipe.SOURCE_FILE,
    job_recipe.PICKLE_FILE,
)


def _make(process: Claimed, files: Mapping[str, bytes]) -> Recipe:
    attributes = process.attributes
    if SHELL_ATTRIBUTE in attributes:
        return ShellRecipe(ShellJob.from_record(attributes[SHELL_ATTRIBUTE]))
    if "function_name" in attributes:
        if function_recipe.PICKLE_FILE not in files:
            namespace, name = attributes["function_namespace"], attributes["function_name"]
            source = files.get(function_recipe.SOURCE_FILE)
            _check_source(_imported(f"{namespace}:{name}"), source, f"{namespace}.{name}")
        return FunctionRecipe.from_record(attributes, files)
    if job_recipe.PICKLE_FILE in files:
        # Our own pickle, from our own repository: as far to be trusted as the profile itself.
        job_class = pickle.loads(files[job_recipe.PICKLE_FILE])  # noqa: S301
    else:
        job_class = _imported(process.process_type)
        _check_source(job_class, files.get(job_recipe.SOURCE_FILE), process.process_type)
    if not (isinstance(job_class, type) and issubclass(job_class, CalcJob)):
        raise CodeChanged(f"{process.process_type} is no CalcJob any more")
    recipe = JobRecipe(job_class)
    recipe.files = files
    return recipe


def _imported(name: str) -> object:
    """What a dotted name, with or without a colon behind its module, stands for."""
    try:
        value = pkgutil.resolve_name(name)
    except Exception as error:  # whatever a module that is being worked on raises
        shown = name.replace(":", ".")
        raise CodeChanged(f"{shown} cannot be imported here: {type(error).__name__}: {error}") from error
    return getattr(value, "__wrapped__", value)


def _check_source(code: object, recorded: bytes | None, name: str) -> None:
    """Running other code under the recorded name would make the record a lie."""
    if recorded is not None and textwrap.dedent(source_of(code)).encode("utf-8", "replace") != recorded:
        raise CodeChanged(f"the source of {name} has changed since this call was recorded: map it again")


def file_keys(repository_metadata: Mapping[str, Any], folder: str = "") -> dict[str, Key]:
    """Path → key of the files of a node."""
    files: dict[str, Key] = {}
    for name, entry in repository_metadata.get("o", {}).items():
        path = f"{folder}{name}"
        if "k" in entry:
            files[path] = Key(entry["k"])
        else:
            files.update(file_keys(entry, f"{path}/"))
    return files


def load_values(profile: Profile, cursor: Any, claimed: Sequence[Claimed]) -> dict[int, dict[str, object]]:
    """The plain input values of processes: every data node loaded once."""
    ids = sorted({node_id for process in claimed for _, node_id in process.inputs})
    nodes = load(cursor, ids, reader=profile.read_files)
    values = {node.id: plain(node) for node in nodes if isinstance(node, Data)}
    return {
        process.node_id: unflatten({label: values[node_id] for label, node_id in process.inputs})
        for process in claimed
    }
