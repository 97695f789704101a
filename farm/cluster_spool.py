"""One campaign's chunks on a computer: what of them lies here, and what there.

Here, in the spool folder of the campaign and the computer:

    run-<time>-<random>/        one executor's life, as in farm.spool; whoever comes next goes on with it
        remote.json             the computer, and the name of the run there
        chunk-000001/
            chunk.zip           until the chunk is done, so that it can be sent again
            sent                it was put into the spool there
            <twin>-result-<n>.zip   a pack that was fetched and is not recorded yet, or the receipt of one

There, below the work directory: spool/<run>/, see farm.agent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grange.farm import runner
from grange.farm.chunk_folder import Fetch, add_inputs, write_chunk
from grange.farm.delivery import PACKS, Delivery
from grange.farm.errors import ResultMalformed
from grange.farm.executor_spool import remove_flat
from grange.farm.result import ResultPack
from grange.farm.result_pack import read_result_pack
from grange.farm.spool import Run, spool_errors
from grange.farm.task import CommandTask, Resources, Task
from grange.repository.key import Key

REMOTE_FILE = "remote.json"
SENT_FILE = "sent"
_PACK = re.compile(r"(chunk-\d+)(?:\+(\d+))?/result-(\d+)\.zip")
_DELIVERED = re.compile(r"0-result-(\d+)\.zip")
#: Of a task whose input files its node could not fetch.
_UNREACHABLE = "input_unreachable"


@dataclass(slots=True, eq=False)
class ClusterChunk:
    """A chunk from its writing until its last pack is recorded.

    need: what the agent has to know of its tasks. waiting: packs that were fetched and are not recorded.
    tried: it may be there. sent: it is there. look_at: when it is to be asked for (on the monotonic clock).
    lost_since: since when it is known that something of it is missing there. lives: how often it was sent
    because it was lost. open_ids: the tasks whose results are waited for. unwanted: those that nobody waits
    for, and that are to end there. away: contents that nodes fetch by themselves; whole: they could not, so
    that the contents have to be sent.
    """

    folder: Path
    attempts: dict[str, int]
    kind: Hashable
    need: dict[str, Any]
    commands: bool
    sent: bool = False
    ended: bool = False
    tried: bool = False
    look_at: float = 0.0
    lost_since: float | None = None
    lives: int = 1
    away: frozenset[Key] = frozenset()
    whole: bool = False
    waiting: set[Path] = field(default_factory=set)
    open_ids: set[str] = field(default_factory=set)
    unwanted: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.folder.name

    def delivered(self, pack: ResultPack) -> ResultPack:
        """Results of this chunk have come. Returns the pack without those that had come before.

        Of a task that was done twice, the first result counts. One whose input files could not be fetched is
        as if it had none.
        """
        fresh = tuple(
            result for result in pack.results if result.id in self.open_ids and result.outcome != _UNREACHABLE
        )
        self.whole = self.whole or any(result.outcome == _UNREACHABLE for result in pack.results)
        self.open_ids.difference_update(result.id for result in fresh)
        return pack if len(fresh) == len(pack.results) else replace(pack, results=fresh)


class ClusterRun:
    """The chunks of one executor's life."""

    def __init__(self, run: Run, computer: str) -> None:
        self._run = run
        self.chunks: dict[str, ClusterChunk] = {}
        #: Marks there that are dealt with, and chunks there that nobody needs: told with the next poll.
        self.seen: set[str] = set()
        self.dropped: set[str] = set()
        self._computer = computer
        self._shipments = 0
        #: Whether something of it may be there.
        self.tried = False

    @classmethod
    def create(cls, root: Path, computer: str) -> ClusterRun:
        """A new run. Errors: SpoolUnwritable."""
        made = cls(Run.create(root), computer)
        with spool_errors(root):
            (made.path / REMOTE_FILE).write_text(json.dumps({"computer": computer}))
        return made

    @classmethod
    def left_behind(cls, root: Path, computer: str) -> list[ClusterRun]:
        """The runs of executors that have ended, with what is known of their chunks here; locked by us."""
        found = []
        for run in Run.dead(root):
            if not (run.path / REMOTE_FILE).exists():
                run.remove()
                continue
            made = cls(run, computer)
            made.tried = True
            made._load()
            found.append(made)
        return found

    @property
    def path(self) -> Path:
        return self._run.path

    @property
    def name(self) -> str:
        """The name of the run, here and there."""
        return self._run.path.name

    @property
    def scratch_name(self) -> str:
        return self._run.scratch_name

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it is under way or waits to be recorded."""
        return not self.chunks and not self.seen and not self.dropped

    # -- out -------------------------------------------------------------------------------------

    def new_chunk(
        self,
        tasks: Sequence[Task],
        kind: Hashable,
        resources: Resources,
        need: Mapping[str, Any],
        *,
        fetch: Fetch | None,
        flush_s: float,
        mpirun: str,
        delivery: Delivery | None,
        more: Mapping[str, Any],
    ) -> tuple[ClusterChunk | None, ResultPack | None]:
        """Write a chunk here. Second: a pack that says input_missing of the tasks that cannot be made.

        Errors: SpoolUnwritable; nothing is left behind then.
        """
        folder = self._run.new_chunk()
        try:
            with spool_errors(self.path):
                missing = write_chunk(
                    folder, tasks, resources, scratch=self.scratch_name, fetch=fetch, flush_s=flush_s,
                    mpirun=mpirun, delivery=delivery, more=more,
                )  # fmt: skip
        except BaseException:
            remove_flat(folder)
            raise
        refused = self.own_pack(tasks, missing) if missing else None
        attempts = {task.id: task.attempt for task in tasks if task.id not in missing}
        if not attempts:
            remove_flat(folder)
            return None, refused
        commands = isinstance(tasks[0], CommandTask)
        chunk = ClusterChunk(folder, attempts, kind, dict(need), commands, open_ids=set(attempts))
        if delivery is not None and commands:
            chunk.away = _left_away(folder)
        self.chunks[chunk.name] = chunk
        return chunk, refused

    def copy_of(self, chunk: ClusterChunk) -> ClusterChunk:
        """A chunk of the same tasks, under another name. Errors: SpoolUnwritable."""
        folder = self._run.new_chunk()
        with spool_errors(self.path):
            os.link(chunk.folder / "chunk.zip", folder / "chunk.zip")
        made = ClusterChunk(
            folder,
            dict(chunk.attempts),
            chunk.kind,
            dict(chunk.need),
            chunk.commands,
            lives=chunk.lives + 1,
            open_ids=set(chunk.open_ids),
            away=chunk.away,
            whole=chunk.whole,
        )
        self.chunks[made.name] = made
        return made

    def own_pack(self, tasks: Iterable[Task], reasons: Mapping[str, str]) -> ResultPack:
        """A pack that says input_missing of tasks that never left, with the reasons."""
        results = [
            runner.result_of({"id": task.id, "attempt": task.attempt}, "input_missing", reasons[task.id])
            for task in tasks
            if task.id in reasons
        ]
        return self.pack_of(results, len(results))

    def pack_of(self, results: Sequence[dict[str, Any]], count: int) -> ResultPack:
        """A pack of results about tasks that no runner got. Errors: SpoolUnwritable."""
        folder = self._run.new_chunk()
        with spool_errors(self.path):
            path = folder / "0-result-1.part"
            pack = runner.ZipWriter(str(path))
            pack.add("manifest.json", runner.dump({"format": runner.FORMAT, "results": list(results)}))
            pack.close()
            path = path.rename(path.with_suffix(".zip"))
        chunk = ClusterChunk(folder, {}, None, {}, True, sent=True, ended=True, waiting={path})
        self.chunks[chunk.name] = chunk
        return read_result_pack(path)

    def complete(self, chunk: ClusterChunk, fetch: Fetch | None) -> None:
        """Put what nodes could not fetch into a chunk that is to be sent.

        Errors: SpoolUnwritable; those of fetch.
        """
        if chunk.whole and chunk.away:
            with spool_errors(self.path):
                add_inputs(chunk.folder, chunk.open_ids, fetch)
            chunk.away = frozenset()

    def shipment(
        self, chunks: Sequence[ClusterChunk], urls: Mapping[str, Mapping[str, Any]]
    ) -> tuple[str, Path]:
        """One file that holds chunks, to be sent; its name there (without ending), and the file here.

        urls: chunk → what its runner is told of the store; nowhere else is it written.
        """
        self._shipments += 1
        name = f"{os.getpid():x}-{self._shipments:06d}"
        path = self.path / f"{name}.zip"
        with spool_errors(self.path):
            pack = runner.ZipWriter(str(path))
            try:
                for chunk in chunks:
                    if chunk.name in urls:
                        pack.add(f"{chunk.name}.urls", runner.dump(urls[chunk.name]))
                    fd = os.open(chunk.folder / "chunk.zip", os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        pack.add_named(chunk.name, fd)
                    finally:
                        os.close(fd)
                pack.close(sync=False)
            except BaseException:
                path.unlink(missing_ok=True)  # it holds secrets
                raise
        return name, path

    def mark_sent(self, chunks: Iterable[ClusterChunk]) -> None:
        """They lie there now; whoever comes after us need not send them again."""
        for chunk in chunks:
            chunk.sent = True
            if not chunk.ended:
                with spool_errors(self.path):
                    (chunk.folder / SENT_FILE).touch()

    # -- back ------------------------------------------------------------------------------------

    def local_path(self, pack: str) -> Path | None:
        """Where a pack there is put here; None for what is no pack of a chunk that we know."""
        match = _PACK.fullmatch(pack)
        if match is None or match[1] not in self.chunks:
            return None
        return self.path / match[1] / f"{match[2] or 0}-result-{match[3]}.zip"

    def urls(self, chunk: ClusterChunk, delivery: Delivery) -> dict[str, Any]:
        """What a chunk's runner is told of the store, a secret. Errors: those of the store."""
        return delivery.urls(self.name, chunk.name, min(PACKS, len(chunk.attempts)), chunk.away)

    def is_sound(self, pack: ResultPack, delivery: Delivery | None) -> bool:
        """Whether what a receipt says is so: the pack that its chunk had a URL for is in the store. True of
        packs that are here.

        Errors: StoreUnavailable (retry).
        """
        if pack.delivered is None:
            return True
        known = _DELIVERED.fullmatch(pack.path.name)
        if known is None or delivery is None:
            return False
        return delivery.has(pack.delivered, self.name, pack.path.parent.name, int(known[1]))

    def fetched(self, path: Path) -> ResultPack | None:
        """A pack that is here now; None if nothing in it is new. Errors: ResultMalformed."""
        chunk = self.chunks[path.parent.name]
        pack = chunk.delivered(read_result_pack(path))
        # Results to come may refer to files that are in no other pack.
        new = bool(pack.results or pack.blobs)
        if new:
            chunk.waiting.add(path)
        else:
            path.unlink(missing_ok=True)
        if not chunk.open_ids:
            self.end(chunk.name)
        return pack if new else None

    def end(self, name: str) -> None:
        """A chunk is done there, and all of its packs are here."""
        self.dropped.add(name)
        chunk = self.chunks.get(name)
        if chunk is not None:
            chunk.ended = True
            self._clear(chunk)

    def acknowledged(self, path: Path) -> None:
        """A pack is recorded."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        chunk = self.chunks.get(path.parent.name)
        if chunk is not None:
            chunk.waiting.discard(path)
            self._clear(chunk)

    def _clear(self, chunk: ClusterChunk) -> None:
        if chunk.ended and not chunk.waiting:
            remove_flat(chunk.folder)
            del self.chunks[chunk.name]

    # -- what an earlier life has left -----------------------------------------------------------

    def _load(self) -> None:
        for folder in sorted(self.path.iterdir()):
            if folder.suffix == ".zip":
                folder.unlink()  # a shipment that was being made
                continue
            if not folder.name.startswith("chunk-") or not folder.is_dir():
                continue
            self._run.skip_chunk(folder)
            chunk = _loaded(folder)
            if chunk is None:
                remove_flat(folder)
            else:
                self.chunks[chunk.name] = chunk

    def packs(self, delivery: Delivery | None) -> Iterator[ResultPack]:
        """What was fetched and not recorded. Errors: StoreUnavailable (retry)."""
        for chunk in list(self.chunks.values()):
            for path in sorted(chunk.waiting):
                try:
                    pack = read_result_pack(path)
                    if not self.is_sound(pack, delivery):
                        raise ResultMalformed(f"{path} tells of a pack that is not in the store")
                except (ResultMalformed, FileNotFoundError):
                    chunk.waiting.discard(path)
                    path.unlink(missing_ok=True)
                    continue
                pack = chunk.delivered(pack)
                if not chunk.open_ids:
                    self.end(chunk.name)
                yield pack

    def close(self, *, swept: bool) -> None:
        """Leave it to whoever comes next, or remove it if there is nothing in it.

        swept: whether there is nothing of it there.
        """
        if self.chunks or not swept:
            self._run.release()
        else:
            self._run.remove()


def _loaded(folder: Path) -> ClusterChunk | None:
    """A chunk as an earlier life has left it; None for one that was never written to its end."""
    waiting = set(folder.glob("*-result-*.zip"))
    try:
        pack = runner.ZipReader(str(folder / "chunk.zip"))
    except (FileNotFoundError, ValueError):
        if waiting:
            return ClusterChunk(folder, {}, None, {}, True, sent=True, ended=True, waiting=waiting)
        return None
    try:
        spec = json.loads(pack.read("chunk.json"))
    finally:
        pack.close()
    attempts = {str(task["id"]): int(task.get("attempt", 1)) for task in spec["tasks"]}
    return ClusterChunk(
        folder,
        attempts,
        None,
        spec.get("need", {}),
        spec["kind"] == "command",
        sent=(folder / SENT_FILE).exists(),
        tried=True,
        waiting=waiting,
        open_ids=set(attempts),
        away=frozenset(spec.get("away", ())),
    )


def _left_away(folder: Path) -> frozenset[Key]:
    """The contents that a chunk names and does not hold."""
    try:
        pack = runner.ZipReader(str(folder / "chunk.zip"))
    except FileNotFoundError:
        return frozenset()
    try:
        return frozenset(json.loads(pack.read("chunk.json")).get("away", ()))
    finally:
        pack.close()
