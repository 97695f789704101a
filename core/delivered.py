"""What a runner delivered, before anything of it is believed: paths, keys, and packs that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from grange.core.errors import InputInvalid
from grange.core.file_names import apart, clash
from grange.core.files import checked_path
from grange.farm.result import ResultPack, TaskResult
from grange.farm.result_pack import set_aside
from grange.repository import Key, PackMalformed
from grange.repository.key import is_key


def believed(result: TaskResult) -> TaskResult:
    """The result, if its files can be recorded as they are; else one that says why they cannot.

    Of files whose names differ only in case the first keeps its name and the others get "~2" …: nothing that
    was computed is lost. Files with a path that leads elsewhere, or whose key is none, are left out. Either
    way the outcome "finished" becomes "retrieve_failed": who reads the files by name would be misled.
    """
    if not result.files or _is_plain(result.files):
        return result
    files: dict[str, Key] = {}
    problems = []
    for path, key in result.files.items():
        try:
            checked_path(path)
        except InputInvalid as problem:
            problems.append(str(problem))
            continue
        if is_key(key):
            files[path] = key
        else:
            problems.append(f"{path}: {key!r:.80} is no key of a content")
    found = clash(tuple(files))
    if found is not None:
        new = apart(files)
        renamed = ", ".join(f"{path!r} as {name!r}" for path, name in new.items() if name != path)
        problems.append(
            f"the names {found[0]!r} and {found[1]!r} cannot be together in one folder everywhere, as they "
            f"differ only in case, or one is a folder; kept are {renamed}: let the program use other names, "
            "or retrieve one of them only"
        )
        files = {new[path]: key for path, key in files.items()}
    reason = "; ".join(problems)
    if result.outcome == "finished":
        return replace(result, outcome="retrieve_failed", message=reason, files=files)
    return replace(result, message=f"{result.message}; {reason}", files=files)


def without_contents(pack: ResultPack, problem: PackMalformed) -> ResultPack:
    """What to record in place of a pack that the repository refuses; its file is set aside."""
    reason = f"{problem.reason}; the result pack is kept as {set_aside(pack.path)}"
    results = tuple(
        replace(result, outcome="retrieve_failed", message=reason, files={}, outputs={})
        for result in pack.results
    )
    return ResultPack(pack.path, results, 0)


def _is_plain(files: Mapping[str, Key]) -> bool:
    """Whether there is nothing to be said against them; most are."""
    if clash(tuple(files)) is not None or not all(map(is_key, files.values())):
        return False
    try:
        for path in files:
            checked_path(path)
    except InputInvalid:
        return False
    return True
