"""Intake: what runners delivered becomes packs in the store and outputs in the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.errors

from grange.core import process as rows
from grange.core.data.folder import Folder
from grange.core.data.remote_stash import RemoteStash
from grange.core.delivered import believed, without_contents
from grange.core.errors import GrangeError, InputInvalid, LinkInvalid
from grange.core.exit_status import OUTPUT_INVALID, exit_code_of
from grange.core.graph import computers_of, store
from grange.core.link import Link, LinkType
from grange.core.node import Data, NodeRef
from grange.core.output_files import OutputFiles
from grange.core.process import End
from grange.core.profile import Profile
from grange.core.recipe import Conclusion, Recipe, failed
from grange.core.transition import ProcessStatus, State, step
from grange.farm.result import ResultPack, TaskResult
from grange.repository import (
    BlobCorrupt,
    BlobLocation,
    BlobMissing,
    Index,
    Key,
    MemoryIndex,
    PackMalformed,
    key_of,
)
from grange.repository.team import Team

#: What storing raises when the data are to blame: what parse() gave, or a value that PostgreSQL refuses.
_OF_DATA = (InputInvalid, LinkInvalid, psycopg2.DataError, psycopg2.errors.ProgramLimitExceeded)

#: Output files up to this size are read for parsers in one go, larger ones when asked for.
READ_AHEAD_BYTES = 64 * 1024
#: Most programs leave one: it need not be read.
_EMPTY = key_of(b"")


@dataclass(slots=True)
class Opened:
    """A process that is under way: what is needed to make sense of its result.

    calls: how many calls of this run it answers. parent_id: the workflow that called it.
    """

    process_id: int
    attempt: int
    recipe: Recipe
    values: Mapping[str, object]
    calls: int
    parent_id: int | None = None


class Intake:
    """Takes result packs of a campaign or queue in: the store first, then all else in one transaction.

    Nothing is pruned from before the store is asked for the packs until that transaction has ended. What a
    pack brings and no node names is kept while the queue has calculations under way, because later packs
    of the same chunk leave it out: PostgresIndex.promise().
    """

    def __init__(self, profile: Profile, queue_id: int) -> None:
        self._profile = profile
        self._queue_id = queue_id

    def record(self, packs: Sequence[ResultPack], opened: Mapping[str, Opened]) -> dict[str, bool]:
        """Record results; those that nobody waits for any more, or of another attempt, change nothing.

        Returns, for each process that this ended, whether it went well. Taking a pack in twice is
        harmless: the store has it already, and compare-and-set leaves ended processes alone.
        """
        while True:
            try:
                return self._record_packs(packs, opened)
            except PackMalformed as problem:
                refused = [pack for pack in packs if pack.blobs and str(pack.path) == problem.name]
                if not refused:
                    raise
                packs = [without_contents(pack, problem) if pack in refused else pack for pack in packs]

    def refuse(
        self, packs: Sequence[ResultPack], opened: Mapping[str, Opened], reason: str
    ) -> dict[str, bool]:
        """Record results as such that cannot be read, without looking; their files are kept. As record()."""
        results = [
            believed(result)
            for pack in packs
            for result in pack.results
            if result.id in opened and opened[result.id].attempt == result.attempt
        ]
        return self._in_one(packs, results, opened, refusal=reason)

    def _record_packs(self, packs: Sequence[ResultPack], opened: Mapping[str, Opened]) -> dict[str, bool]:
        results: dict[str, TaskResult] = {}
        for pack in packs:
            for result in pack.results:
                if result.id in opened and opened[result.id].attempt == result.attempt:
                    results.setdefault(result.id, believed(result))
        try:
            return self._in_one(packs, list(results.values()), opened)
        except _OF_DATA:
            pass
        # Something in it cannot be stored: one by one, so that it ends its own process and no other.
        ended = self._in_one(packs, [], opened)
        for result in results.values():
            try:
                ended |= self._in_one([], [result], opened)
            except _OF_DATA as error:
                ended |= self._in_one([], [result], opened, refusal=str(error))
        return ended

    def _in_one(
        self,
        packs: Sequence[ResultPack],
        results: Sequence[TaskResult],
        opened: Mapping[str, Opened],
        refusal: str = "",
    ) -> dict[str, bool]:
        """Take packs into the store and record results, in one transaction with the places of all files."""
        with self._profile.transaction() as cursor:
            index = self._profile.index(cursor)
            index.hold()
            return self._record(cursor, results, opened, self._taken_in(packs), refusal)

    def _taken_in(self, packs: Sequence[ResultPack]) -> dict[Key, BlobLocation]:
        """Where the blobs of packs lie, once they are in the store.

        Those that their nodes have put there were compared with their receipts when these were fetched; that
        they are still there is asked now, while nothing is pruned. What is not gives no rows.
        """
        repository = self._profile.repository
        files = [pack.path for pack in packs if pack.blobs and pack.delivered is None]
        there = [pack.delivered for pack in packs if pack.blobs and pack.delivered is not None]
        locations = repository.adopt(*files)
        with Team(repository.store.parallel) as team:
            sizes = team.map(repository.store.head, [pack.object_name for pack in there])
            for pack, size in zip(there, sizes, strict=True):
                if size == pack.size:
                    locations |= pack.locations()
        return locations

    def _record(
        self,
        cursor: Any,
        results: Sequence[TaskResult],
        opened: Mapping[str, Opened],
        locations: Mapping[Key, BlobLocation],
        refusal: str,
    ) -> dict[str, bool]:
        index = self._profile.index(cursor)
        brought = _Brought(index, locations)

        def read(keys: Sequence[Key]) -> list[bytes]:
            return self._profile.repository.read(keys, brought)

        elsewhere = index.find(
            {key for result in results for key in result.files.values()} - locations.keys()
        )
        places = {**elsewhere, **locations}
        ahead = self._read_ahead(results, opened, places, brought)
        drawn = []
        for result in results:
            process = opened[result.id]
            files = OutputFiles(result.files, read, ahead, result.return_code, places)
            drawn.append(_refused(result, refusal) if refusal else _concluded(process, result, files))
        unseen = _named(data for conclusion in drawn for data in conclusion.outputs.values())
        unseen -= locations.keys() | elsewhere.keys()
        elsewhere |= index.find(unseen)
        missing = unseen - elsewhere.keys()
        conclusions: dict[int, Conclusion] = {}
        ends = []
        for result, conclusion in zip(results, drawn, strict=True):
            process = opened[result.id]
            if missing:
                conclusion = _complete(result, conclusion, missing)
            conclusions[process.process_id] = conclusion
            ends.append(_end(process, result, conclusion))
        # As everybody does: rows of processes are locked first, those of packs and blobs last.
        rows.lock(cursor, {end.parent_id for end in ends if end.parent_id is not None})
        index.promise({place.object_name for place in locations.values()}, self._queue_id)
        index.add(locations)
        ended = rows.end(cursor, ends)
        _place_stashes(cursor, {id_: conclusion for id_, conclusion in conclusions.items() if id_ in ended})
        nodes: list[Data] = []
        links: list[Link] = []
        for process_id, conclusion in conclusions.items():
            if process_id not in ended:
                continue
            source = NodeRef.calculation(process_id)
            for label, data in conclusion.outputs.items():
                nodes.append(data)
                links.append(Link(source, data, LinkType.CREATE, label))
        store(
            cursor,
            nodes,
            links,
            user_id=self._profile.user_id,
            repository=self._profile.repository,
            index=index,
            known=locations.keys() | elsewhere.keys(),
        )
        if unnamed := locations.keys() - _named(nodes):
            # What an older pack has, too, lies there: not in a pack that is kept while others rely on it.
            index.move(self._sound({key: locations[key] for key in unnamed}, index))
        return {
            str(process_id): conclusions[process_id].state is State.FINISHED
            and not conclusions[process_id].exit_status
            for process_id in ended
        }

    def _sound(self, rows: Mapping[Key, BlobLocation], index: Index) -> dict[Key, BlobLocation]:
        """Of contents that are known elsewhere too, those that are in their new place what they should be.

        What a damaged pack has must not take the place of what is good.
        """
        known = index.find(rows.keys())
        found: dict[Key, BlobLocation] = {}
        for key, place in rows.items():
            if key in known and known[key].object_name != place.object_name:
                here = MemoryIndex()
                here.add({key: place})
                with contextlib.suppress(BlobCorrupt, BlobMissing):
                    for _ in self._profile.repository.stream(key, here):
                        pass
                    found[key] = place
        return found

    def _read_ahead(
        self,
        results: Sequence[TaskResult],
        opened: Mapping[str, Opened],
        locations: Mapping[Key, BlobLocation],
        index: Index,
    ) -> dict[Key, bytes]:
        """The small files that parsers are likely to ask for, in one read of the packs.

        A runner puts what it has kept before into no later pack of its chunk: where that is, one look
        into the index tells for all of them.
        """
        wanted = {
            key for result in results if opened[result.id].recipe.parses for key in result.files.values()
        }
        ahead = {_EMPTY: b""} if _EMPTY in wanted else {}
        wanted -= ahead.keys()
        keys = [key for key in wanted if (place := locations.get(key)) and place.size <= READ_AHEAD_BYTES]
        if keys:
            # What is missing or damaged is told by the parser that asks for it, and of its process alone.
            with contextlib.suppress(BlobMissing, BlobCorrupt):
                ahead.update(zip(keys, self._profile.repository.read(keys, index), strict=True))
        return ahead


class _Brought:
    """The index as it will be when what packs have brought is added to it; for reading."""

    def __init__(self, index: Index, locations: Mapping[Key, BlobLocation]) -> None:
        self._index = index
        self._locations = locations

    def hold(self) -> None:
        self._index.hold()

    def find(self, keys: Collection[Key]) -> dict[Key, BlobLocation]:
        brought = {key: self._locations[key] for key in keys if key in self._locations}
        return brought | self._index.find(keys)

    def add(self, rows: Mapping[Key, BlobLocation]) -> None:
        self._index.add(rows)


def _place_stashes(cursor: Any, conclusions: Mapping[int, Conclusion]) -> None:
    """Say on which computers files have stayed: those that their calculations were for."""
    stashes = {
        process_id: data
        for process_id, conclusion in conclusions.items()
        for data in conclusion.outputs.values()
        if isinstance(data, RemoteStash)
    }
    if stashes:
        for node_id, computer_id in computers_of(cursor, stashes):
            stashes[node_id].computer_id = computer_id


def _concluded(process: Opened, result: TaskResult, files: OutputFiles) -> Conclusion:
    """What a result means; output that cannot be data is the end of that process, not of the run."""
    try:
        return process.recipe.conclude(result, process.values, files)
    except GrangeError as error:
        return failed(OUTPUT_INVALID, str(error))


def _named(nodes: Iterable[Data]) -> set[Key]:
    """The keys among the files of data."""
    return {key for data in nodes for key in data._files.values() if isinstance(key, str)}


def _complete(result: TaskResult, conclusion: Conclusion, missing: Collection[Key]) -> Conclusion:
    """The conclusion, if it names no content that is missing.

    A runner leaves out of a pack what an earlier pack of its chunk has; should that be lost, as with nodes
    that were deleted meanwhile and then pruned, this calculation has no result, and no other is harmed.
    """
    lost = _named(conclusion.outputs.values()) & set(missing)
    if not lost:
        return conclusion
    files = {path: key for path, key in result.files.items() if key not in missing}
    kept: dict[str, Data] = {"retrieved": Folder.of_keys(files)} if files else {}
    paths = sorted(path for path, key in result.files.items() if key in lost)
    shown = ", ".join(paths[:3]) or f"{len(lost)} contents"
    code = exit_code_of("retrieve_failed", bool(files))
    return failed(code, f"{shown}: not in the store any more; retry the calculation", kept)


def _refused(result: TaskResult, reason: str) -> Conclusion:
    kept: dict[str, Data] = {"retrieved": Folder.of_keys(result.files)} if result.files else {}
    return failed(OUTPUT_INVALID, reason, kept)


def _end(process: Opened, result: TaskResult, conclusion: Conclusion) -> End:
    status = step(ProcessStatus(State.WAITING, process.attempt), conclusion.event(result.attempt))
    return End(
        node_id=process.process_id,
        attempt=status.attempt,
        state=status.state,
        exit_status=status.exit_status,
        message=status.message or None,
        started_at=result.started_at,
        wall_s=result.wall_s,
        cpu_s=result.cpu_s,
        peak_memory_mb=result.peak_memory_mb,
        host=result.host,
        parent_id=process.parent_id,
        invalidates_cache=conclusion.invalidates_cache,
    )
