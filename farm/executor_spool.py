"""What every executor does with its spool: write chunks, find result packs, recover, clear away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from grange.farm import runner
from grange.farm.chunk_folder import Fetch, write_chunk
from grange.farm.errors import ResultMalformed, SpoolUnwritable
from grange.farm.result import ResultPack, TaskResult
from grange.farm.result_pack import read_result_pack, set_aside
from grange.farm.spool import Run, spool_errors
from grange.farm.task import Resources, Task
from grange.farm.task_script import MPIRUN


class SpooledChunk:
    """A chunk in the spool, from its writing until its last result pack is acknowledged."""

    def __init__(self, folder: Path, ids: Sequence[str], attempts: Sequence[int]) -> None:
        self.folder = folder
        self.count = len(ids)
        self.finished = False
        self._ids = ids
        self._attempts = attempts
        self._cancelled: set[str] | None = set()
        self._seen: set[int] = set()
        self._waiting: set[Path] = set()

    def new_packs(self, numbers: Iterable[int]) -> list[ResultPack]:
        """The packs of these numbers that have not been seen before."""
        found = []
        for number in numbers:
            if number not in self._seen:
                self._seen.add(number)
                path = self.folder / f"result-{number}.zip"
                self._waiting.add(path)
                try:
                    found.append(read_result_pack(path))
                except ResultMalformed as problem:
                    found.append(self._refused(path, number, str(problem)))
        return found

    def _refused(self, path: Path, number: int, reason: str) -> ResultPack:
        """What to tell of the tasks whose results are in a pack that cannot be read; it is set aside."""
        marks = runner.read_marks(str(self.folder))[2:]
        with spool_errors(self.folder):
            reason += f"; it is kept as {set_aside(path)}"
        results = tuple(
            TaskResult(**runner.result_of({"id": task_id, "attempt": attempt}, "retrieve_failed", reason))
            for task_id, attempt, mark in zip(self._ids, self._attempts, marks, strict=False)
            if mark == number
        )
        return ResultPack(path, results, 0)

    def sweep(self) -> list[ResultPack]:
        """What a runner that died had finished but not reported. No runner may be at work on the chunk."""
        with spool_errors(self.folder):
            runner.settle_parts(str(self.folder))
            names = [name for name in os.listdir(self.folder) if name.startswith("result-")]
        return self.new_packs(sorted(int(name[7:-4]) for name in names if name.endswith(".zip")))

    def finish(self) -> None:
        """The runner is done with it."""
        self.finished = True
        self._clear()

    def acknowledged(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._waiting.discard(path)
        self._clear()

    def cancel(self, ids: set[str] | None) -> bool:
        """Write the cancel mark; False if none of the ids is in this chunk."""
        if ids is not None:
            ids = ids.intersection(self._ids)
            if not ids:
                return False
            ids |= self._cancelled or set()
        if self._cancelled is None:
            return True
        self._cancelled = ids
        with spool_errors(self.folder):
            mark = self.folder / "cancel.part"
            mark.write_text(json.dumps(sorted(ids or ())))
            mark.rename(self.folder / "cancel")
        return True

    def running_is_cancelled(self) -> bool:
        """Whether the task that runs now is one of those that were cancelled."""
        marks = runner.read_marks(str(self.folder))
        if not marks or marks[0] == runner.IDLE:
            return False
        return self._cancelled is None or self._ids[marks[0]] in self._cancelled

    def undone(self) -> list[dict[str, Any]]:
        """The tasks without a result. No runner may be at work on the chunk."""
        marks = runner.read_marks(str(self.folder))[2:] or bytes(self.count)
        return [
            {"id": task_id, "attempt": attempt}
            for task_id, attempt, mark in zip(self._ids, self._attempts, marks, strict=True)
            if not mark
        ]

    def _clear(self) -> None:
        if self.finished and not self._waiting:
            remove_flat(self.folder)


def remove_flat(folder: Path) -> None:
    """Remove a folder of files; quicker than a walk over what may be there."""
    try:
        for name in os.listdir(folder):
            os.unlink(folder / name)
        os.rmdir(folder)
    except FileNotFoundError:
        return
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)


class ExecutorSpool:
    """One executor's run in the spool, and what it took over from executors that died."""

    def __init__(self, root: Path, fetch: Fetch | None, flush_s: float, mpirun: str = MPIRUN) -> None:
        self._root = root
        self._fetch = fetch
        self._flush_s = flush_s
        self._mpirun = mpirun
        self._run = Run.create(root)
        self._chunks: dict[Path, SpooledChunk] = {}
        self._dead: dict[Path, tuple[Run, set[Path]]] = {}

    @property
    def folder(self) -> Path:
        return self._run.path

    @property
    def lock_fd(self) -> int:
        return self._run.lock_fd

    def note_runner(self, pid: int) -> None:
        self._run.note_runner(pid)

    def open_log(self) -> int:
        """The file for what runners have to say that belongs to no task."""
        with spool_errors(self.folder):
            return os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def last_words(self) -> str:
        """What the last runner or server said before it gave up."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def unwritable(self) -> SpoolUnwritable:
        """What to raise when a runner found that the spool cannot be written."""
        probe = self.folder / "probe"
        try:
            with spool_errors(self.folder):
                try:
                    # A full disk often has room for a little.
                    probe.write_bytes(bytes(8 << 20))
                finally:
                    with contextlib.suppress(OSError):
                        probe.unlink()
        except SpoolUnwritable as problem:
            return problem
        return SpoolUnwritable(f"the spool folder {self.folder} could not be written: {self.last_words()}")

    def new_chunk(
        self, tasks: Sequence[Task], resources: Resources
    ) -> tuple[SpooledChunk | None, ResultPack | None]:
        """Write a chunk. Second: a pack that says input_missing of the tasks that cannot be made.

        Errors: SpoolUnwritable; nothing is left behind then.
        """
        folder = self._run.new_chunk()
        refused = None
        try:
            with spool_errors(self.folder):
                missing = write_chunk(
                    folder,
                    tasks,
                    resources,
                    scratch=self._run.scratch_name,
                    fetch=self._fetch,
                    flush_s=self._flush_s,
                    mpirun=self._mpirun,
                )
        except BaseException:
            remove_flat(folder)
            raise
        made = [task for task in tasks if task.id not in missing]
        chunk = SpooledChunk(folder, [task.id for task in made], [task.attempt for task in made])
        if missing:
            refused = self.own_pack(
                [
                    runner.result_of(
                        {"id": task.id, "attempt": task.attempt}, "input_missing", missing[task.id]
                    )
                    for task in tasks
                    if task.id in missing
                ]
            )
        if not made:
            remove_flat(folder)
            return None, refused
        self._chunks[folder] = chunk
        return chunk, refused

    def own_pack(self, results: Sequence[dict[str, Any]]) -> ResultPack:
        """A result pack about tasks that no runner got. Errors: SpoolUnwritable."""
        folder = self._run.new_chunk()
        chunk = SpooledChunk(folder, [str(result["id"]) for result in results], [])
        self._write_results(folder, 1, results)
        self._chunks[folder] = chunk
        (pack,) = chunk.new_packs([1])
        chunk.finish()
        return pack

    def give_up(self, chunk: SpooledChunk, reason: str) -> ResultPack:
        """A result pack that says crashed of what is left of a chunk that kills its runners."""
        results = [runner.result_of(task, "crashed", reason) for task in chunk.undone()]
        pack = self.own_pack(results)
        chunk.finish()
        return pack

    def _write_results(self, folder: Path, number: int, results: Sequence[dict[str, Any]]) -> None:
        with spool_errors(self.folder):
            path = folder / f"result-{number}.part"
            pack = runner.ZipWriter(str(path))
            pack.add("manifest.json", runner.dump({"format": runner.FORMAT, "results": list(results)}))
            pack.close()
            path.rename(path.with_suffix(".zip"))

    def acknowledge(self, packs: Sequence[ResultPack]) -> None:
        """Let go of packs that are recorded, and of what is done with."""
        for pack in packs:
            folder = pack.path.parent
            chunk = self._chunks.get(folder)
            if chunk is not None:
                chunk.acknowledged(pack.path)
                if not folder.exists():
                    del self._chunks[folder]
                continue
            with contextlib.suppress(FileNotFoundError):
                pack.path.unlink()
            self._acknowledge_recovered(pack.path)

    def _acknowledge_recovered(self, path: Path) -> None:
        entry = self._dead.get(path.parent.parent)
        if entry is not None:
            run, waiting = entry
            waiting.discard(path)
            if not waiting:
                del self._dead[run.path]
                run.remove()

    def recover(self) -> list[ResultPack]:
        """Result packs of executors that died; their folders are ours until they are acknowledged."""
        found = []
        for run in Run.dead(self._root):
            packs = run.packs()
            if packs:
                readable = self._readable(packs)
                if not readable:
                    run.remove()
                    continue
                self._dead[run.path] = (run, {pack.path for pack in readable})
                found += readable
            else:
                run.remove()
        return found

    @staticmethod
    def _readable(packs: Sequence[Path]) -> list[ResultPack]:
        """Those that can be read; the others are set aside, and their tasks are done again."""
        found = []
        for path in packs:
            try:
                found.append(read_result_pack(path))
            except ResultMalformed:
                with spool_errors(path):
                    set_aside(path)
        return found

    def close(self, undelivered: bool) -> None:
        """Remove what nobody needs; leave what was not delivered or not acknowledged to recover()."""
        for run, _ in self._dead.values():
            run.release()
        self._dead.clear()
        if undelivered or self._run.packs():
            self._run.release()
        else:
            self._run.remove()
