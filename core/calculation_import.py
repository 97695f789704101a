"""Calculations that somebody ran before, taken into the graph as if they had been run here."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grange.core import process as rows
from grange.core.caching import Caching
from grange.core.calcjob import CalcJob
from grange.core.call_binding import given_profile
from grange.core.calls import Call, Calls, Fixed, is_column
from grange.core.client_waiter import ClientWaiter
from grange.core.command import Command
from grange.core.computed_folder import ComputedFolder, FolderHere, files_of, folders_there, prefetch
from grange.core.connection import open_connection
from grange.core.data.remote_folder import RemoteFolder
from grange.core.errors import GrangeError, InputInvalid
from grange.core.executors import load_computer
from grange.core.files import Content
from grange.core.future import Future
from grange.core.graph import forget, store
from grange.core.job_recipe import JobRecipe
from grange.core.json_value import checked
from grange.core.link import Link, LinkType
from grange.core.node import Data, Node, ProcessNode
from grange.core.output_files import OutputFiles
from grange.core.port import ports_of_class
from grange.core.process import NewProcess
from grange.core.profile import Profile
from grange.core.recipe import Conclusion
from grange.core.runnable import calls_of
from grange.core.shell_job import ShellJob
from grange.farm.result import TaskResult
from grange.farm.runner import HOST
from grange.repository import Key

#: So many calculations, or files of so many bytes, are recorded in one transaction.
SLICE = 500
SLICE_BYTES = 256 << 20
#: The input that says where a calculation of another computer was run, as in AiiDA.
REMOTE_FOLDER = "remote_folder"
#: At the process's node: of the files that were taken, so that a second import finds the first.
_DIGEST = "import_digest"

Job = type[CalcJob] | ShellJob


def import_calculation(
    job: Job,
    folder: str | Path,
    inputs: Mapping[str, object] | None = None,
    /,
    *,
    computer: str | None = None,
    files: Mapping[str, str] | None = None,
    return_code: int = 0,
    label: str = "",
    cache: bool | None = None,
    profile: Profile | None = None,
    **more: object,
) -> Future:
    """Take in a calculation that was run without grange: its files are kept and parsed, and it is finished.

        gr.import_calculation(Energy, "old/h2o", structure=h2o, files={"stdout.txt": "energy.out"})

    folder: where the program was run, here or, with computer, there. inputs: those of the class; where it has
    a class method import_inputs(files), what that reads out of the folder's files is taken for those that are
    not given. files: name that the class knows → path in the folder, for those that are called otherwise.
    return_code: what the program ended with. cache: false for one that must not answer equal calls.

    The files are those that the class would have kept; its input files, where the folder has them, are
    kept with the process. Nothing is run. What was imported before, with the same inputs and files, is
    found again.

    Errors: InputInvalid, before anything is stored; those of reaching the computer.
    """
    given = {**(inputs or {}), **more}
    [future] = _imported(
        job, [folder], given, computer, files, return_code, [label], cache, profile, one=True
    )
    return future


def import_calculations(
    job: Job,
    folders: Sequence[str | Path],
    inputs: Mapping[str, object] | None = None,
    /,
    *,
    computer: str | None = None,
    files: Mapping[str, str] | None = None,
    return_code: int = 0,
    labels: Sequence[str] | None = None,
    cache: bool | None = None,
    profile: Profile | None = None,
    **more: object,
) -> list[Future]:
    """Many at once: inputs that are lists go with the folders in step, others are one value for all."""
    given = {**(inputs or {}), **more}
    return _imported(job, folders, given, computer, files, return_code, labels, cache, profile, one=False)


def _imported(
    job: Job,
    folders: Sequence[str | Path],
    inputs: Mapping[str, object],
    computer: str | None,
    files: Mapping[str, str] | None,
    return_code: int,
    labels: Sequence[str] | None,
    cache: bool | None,
    profile: Profile | None,
    *,
    one: bool,
) -> list[Future]:
    profile = given_profile(profile, "import_calculation")
    if isinstance(folders, str | Path) or not folders:
        raise InputInvalid("import_calculation: folders", folders, "a list of at least one folder")
    with _opened(profile, folders, computer) as (opened, computer_id):
        calls = _calls(profile, job, opened, inputs, cache, one)
        calls.set_labels(labels)
        importing = _Import(profile, calls, computer_id, files or {}, return_code)
        waiter = ClientWaiter(profile)
        futures = []
        for start in range(0, len(opened), SLICE):
            taken = importing.taken(calls.slice(start, start + SLICE), opened[start : start + SLICE])
            for some in _portions(taken):
                for process_id, conclusion in importing.record(some):
                    future = Future(waiter, calls.recipe.label, process_id, calls.recipe.node_class)
                    future.settle(conclusion.state, conclusion.exit_status, conclusion.message or None)
                    futures.append(future)
    return futures


@contextlib.contextmanager
def _opened(
    profile: Profile, folders: Sequence[str | Path], computer: str | None
) -> Iterator[tuple[list[ComputedFolder], int | None]]:
    where = "import_calculation: folder"
    if computer is None:
        yield [FolderHere(Path(folder), where) for folder in folders], None
        return
    stored = load_computer(profile, computer)
    profile.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="import-", dir=profile.spool))
    try:
        with contextlib.closing(open_connection(profile, stored.computer, stored.id)) as transport:
            yield folders_there(transport, [str(folder) for folder in folders], scratch, where), stored.id
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _calls(
    profile: Profile,
    job: Job,
    folders: Sequence[ComputedFolder],
    given: Mapping[str, object],
    cache: bool | None,
    one: bool,
) -> Calls:
    """The inputs of each folder: what was given, and what its files say. Errors: InputInvalid."""
    read = getattr(job, "import_inputs", None)
    found = []
    if read is not None and ports_of_class(job.Inputs).keys() - given.keys():
        found = [read(files_of(folder, {path: path for path in folder.paths(["**"])})) for folder in folders]
    if one:
        inputs = {**(found[0] if found else {}), **given}
    else:
        inputs = {name: [each.get(name) for each in found] for name in dict.fromkeys(itertools.chain(*found))}
        inputs |= given
        if inputs and not any(map(is_column, inputs.values())):
            # as many calls as folders, whatever the inputs
            inputs = {
                name: [value.value if isinstance(value, Fixed) else value] * len(folders)
                for name, value in inputs.items()
            }
    calls = calls_of(profile, job, inputs, one=one, cache=cache)
    if len(calls) != len(folders):
        raise InputInvalid(
            "import_calculation: inputs",
            len(calls),
            f"lists of {len(folders)} values, one for each folder, or single values",
        )
    if not isinstance(calls.recipe, JobRecipe):
        raise InputInvalid("import_calculation", job, "a CalcJob class or a ShellJob")
    return calls


@dataclass(slots=True)
class _Found:
    """What is to be taken of a folder. names: name → path there; inputs: paths of input files."""

    call: Call
    folder: ComputedFolder
    retrieve_list: list[str]
    names: dict[str, str]
    inputs: list[str]

    @property
    def paths(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys([*self.names.values(), *self.inputs]))


@dataclass(slots=True)
class Taken:
    """A calculation that is about to be recorded.

    names: what is kept of it, name → where it lies here. inputs: the same of its input files. keys: of the
    contents of both, by where they lie.
    """

    call: Call
    folder: ComputedFolder
    retrieve_list: list[str]
    names: dict[str, Path]
    inputs: dict[str, Path]
    keys: dict[Path, Key]
    conclusion: Conclusion

    @property
    def digest(self) -> str:
        """Of what was taken."""
        named = sorted((name, self.keys[place]) for name, place in self.names.items())
        return hashlib.sha256(repr(named).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """How large all of it is."""
        return sum(place.stat().st_size for place in self.keys)


def _portions(taken: Sequence[Taken]) -> Iterator[list[Taken]]:
    some: list[Taken] = []
    size = 0
    for one in taken:
        if some and size + one.bytes > SLICE_BYTES:
            yield some
            some, size = [], 0
        some.append(one)
        size += one.bytes
    if some:
        yield some


class _Import:
    """Takes calculations of one job in."""

    def __init__(
        self,
        profile: Profile,
        calls: Calls,
        computer_id: int | None,
        files: Mapping[str, str],
        return_code: int,
    ) -> None:
        self._profile = profile
        self._calls = calls
        assert isinstance(calls.recipe, JobRecipe)
        self._recipe: JobRecipe = calls.recipe
        self._computer_id = computer_id
        self._files = files
        self._return_code = return_code

    def taken(self, calls: Sequence[Call], folders: Sequence[ComputedFolder]) -> list[Taken]:
        """Look at folders, and see what their files come to. Errors: InputInvalid; what prepare() raises."""
        found = [self._found(call, folder) for call, folder in zip(calls, folders, strict=True)]
        prefetch((one.folder, one.paths) for one in found)
        return [self._concluded(one) for one in found]

    def _found(self, call: Call, folder: ComputedFolder) -> _Found:
        """What is to be taken of a folder."""
        command: Command = self._recipe.draft(call.values()).payload
        kept = [command.stdout, command.stderr, *command.retrieve]
        names = {path: path for path in folder.paths(kept)}
        known = set(folder.paths(list(self._files.values()))) if self._files else set()
        for name, path in self._files.items():
            if path not in known:
                raise InputInvalid(f"import_calculation: files[{name!r}]", path, f"a file in {folder.place}")
            names[name] = path
        if not names:
            raise InputInvalid(
                "import_calculation: folder", folder.place, f"one with any of the files {', '.join(kept)}"
            )
        inputs = [path for path in folder.paths(list(command.files)) if path in command.files]
        return _Found(call, folder, list(command.retrieve), names, inputs)

    def _concluded(self, found: _Found) -> Taken:
        """What the files of a folder come to."""
        paths = found.paths
        places = dict(zip(paths, found.folder.fetched(paths), strict=True))
        keys = {place: _key_of(place) for place in places.values()}
        by_name = {name: places[path] for name, path in found.names.items()}
        by_key = {keys[place]: place for place in by_name.values()}

        def read(wanted: Sequence[Key]) -> list[bytes]:
            return [by_key[key].read_bytes() for key in wanted]

        files = {name: keys[place] for name, place in by_name.items()}
        conclusion = self._recipe.conclude(
            _result(files, self._return_code),
            found.call.values(),
            OutputFiles(files, read, {}, self._return_code),
        )
        inputs = {path: places[path] for path in found.inputs}
        return Taken(found.call, found.folder, found.retrieve_list, by_name, inputs, keys, conclusion)

    def record(self, taken: Sequence[Taken]) -> list[tuple[int, Conclusion]]:
        """Record these in one transaction; the process of each, in order."""
        profile, recipe, calls = self._profile, self._recipe, self._calls
        attributes = [self._attributes(one) for one in taken]
        shared = calls.caching is not Caching.PRIVATE
        new: list[Node] = []
        with _forgotten(new), profile.transaction() as cursor:
            known = find_imported(cursor, {one.call.key for one in taken})
            fresh = [
                (one, given)
                for one, given in zip(taken, attributes, strict=True)
                if (one.call.key, one.digest) not in known
            ]
            index = profile.index(cursor)
            contents = {key: place for one, _ in fresh for place, key in one.keys.items()}
            keys, places = profile.repository.put(list(contents.values()), index)
            if keys != list(contents):
                raise GrangeError(
                    "a file was changed while it was imported: once more, when nobody writes there"
                )
            index.add(places)
            nodes = [self._node(one, given) for one, given in fresh]
            data = {id(item): item for one, _ in fresh for item in _inputs(one)}
            new += [item for item in data.values() if item.id is None]
            links: list[Link] = []
            for (one, _), node in zip(fresh, nodes, strict=True):
                links += [
                    Link(item, node, LinkType.INPUT_CALC, name)
                    for argument in one.call.arguments.values()
                    for name, item in argument.nodes.items()
                ]
                if self._computer_id is not None and REMOTE_FOLDER not in one.call.arguments:
                    remote = RemoteFolder(one.folder.place, computer_id=self._computer_id)
                    new.append(remote)
                    links.append(Link(remote, node, LinkType.INPUT_CALC, REMOTE_FOLDER))
            new += nodes
            for (one, _), node in zip(fresh, nodes, strict=True):
                for name, output in one.conclusion.outputs.items():
                    new.append(output)
                    links.append(Link(node, output, LinkType.CREATE, name))
            store(
                cursor, new, links, user_id=profile.user_id, repository=profile.repository, index=index,
                reader=profile.read_files, known=set(contents),
            )  # fmt: skip
            rows.insert(
                cursor,
                [
                    NewProcess(
                        _id(node), recipe.label, one.call.key, None, None, one.conclusion.state, 1, None,
                        one.conclusion.exit_status, one.conclusion.message or None,
                        valid_cache=shared and not one.conclusion.invalidates_cache,
                    )
                    for (one, _), node in zip(fresh, nodes, strict=True)
                ],
            )  # fmt: skip
        made = iter(nodes)
        ids = [known.get((one.call.key, one.digest)) for one in taken]
        return [
            (found if found is not None else _id(next(made)), one.conclusion)
            for found, one in zip(ids, taken, strict=True)
        ]

    def _attributes(self, one: Taken) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            **self._calls.attributes,
            "imported": True,
            "remote_workdir": one.folder.place,
            _DIGEST: one.digest,
        }
        if one.retrieve_list:
            attributes["retrieve_list"] = one.retrieve_list
        if self._computer_id is None:
            attributes["imported_on"] = HOST
        made: dict[str, Any] = checked(attributes, "attributes")
        return made

    def _node(self, one: Taken, attributes: dict[str, Any]) -> ProcessNode:
        files: dict[str, Content] = dict(self._recipe.files)
        files.update((path, one.keys[place]) for path, place in one.inputs.items())
        node = self._recipe.node_class.from_checked(
            attributes,
            label=self._calls.label_of(one.call),
            files=files,
            process_type=self._recipe.process_type,
        )
        node.computer_id = self._computer_id
        return node


def find_imported(cursor: Any, keys: set[bytes]) -> dict[tuple[bytes, str], int]:
    """Of these calls those that were imported before: key and digest of the files → process."""
    cursor.execute(
        """
        SELECT p.key, n.attributes->>'import_digest', min(p.node_id)
        FROM process p JOIN node n ON n.id = p.node_id
        WHERE p.key = ANY(%s) AND p.campaign_id IS NULL AND n.attributes ? 'import_digest' GROUP BY 1, 2
        """,
        (list(keys),),
    )
    return {(bytes(key), digest): node_id for key, digest, node_id in cursor.fetchall()}


@contextlib.contextmanager
def _forgotten(new: list[Node]) -> Iterator[None]:
    """What was not stored after all has no id; new grows in the block."""
    try:
        yield
    except BaseException:
        forget(new)
        raise


def _inputs(one: Taken) -> Iterator[Data]:
    for argument in one.call.arguments.values():
        yield from argument.nodes.values()


def _id(node: Node) -> int:
    assert node.id is not None
    return node.id


def _key_of(place: Path) -> Key:
    with place.open("rb") as file:
        return Key(hashlib.file_digest(file, "sha256").hexdigest())


def _result(files: Mapping[str, Key], return_code: int) -> TaskResult:
    """What a runner would have told of it."""
    return TaskResult(
        id="", attempt=1, outcome="finished", return_code=return_code, signal=None, message="", outputs={},
        files=files, started_at=0.0, wall_s=0.0, cpu_s=0.0, peak_memory_mb=0.0, host=HOST,
    )  # fmt: skip
