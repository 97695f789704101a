"""The spool of an account that may run next to nothing: all of it by looking at files and putting files.

What the agent does elsewhere on the login node, it does inside an allocation here (agent.serve).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from grange.farm import runner
from grange.farm.remote import Remote
from grange.farm.spool_there import News
from grange.farm.transport import Entry

#: How long it is waited between two looks: each is a few requests to the file system. Units: seconds.
SHORTEST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0


class FileSpool:
    """The spool by SFTP alone. stopped: asked while waiting; true ends the wait."""

    def __init__(self, remote: Remote, stopped: Callable[[], bool] = lambda: False) -> None:
        self._remote = remote
        self._transport = remote.transport
        self._stopped = stopped
        self._pause_s = SHORTEST_PAUSE_S
        self._tick = threading.Event()

    def poll(
        self,
        runs: Collection[str],
        *,
        seen: Mapping[str, Sequence[str]],
        dropped: Mapping[str, Sequence[str]],
        expected: Mapping[str, Sequence[str]],
        wait_s: float,
        gather_s: float,
    ) -> News:
        """Look again and again, the more seldom the longer nothing comes."""
        self._remove(seen, dropped)
        missing = {run: self._missing(run, chunks) for run, chunks in expected.items()}
        until = time.monotonic() + wait_s
        while True:
            marks = self._marks(sorted(runs))
            if marks:
                self._pause_s = SHORTEST_PAUSE_S
                break
            left = until - time.monotonic()
            if left <= 0 or self._stopped() or any(missing.values()):
                break
            self._tick.wait(min(left, self._pause_s))
            self._pause_s = min(LONGEST_PAUSE_S, 1.5 * self._pause_s)
        cores, broken = self._hosts()
        return News(marks, cores, broken, self._problems(sorted(runs)), missing)

    def cancel(self, chunks: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
        """A file in the folder of what runs; what has not begun is taken away."""
        withdrawn: dict[str, list[str]] = {}
        marks: list[tuple[bytes, str]] = []
        for run, wanted in chunks.items():
            there = self._remote.spool_dir(run)
            names = sorted(wanted)
            begun = self._transport.read([f"{there}/{name}/marks" for name in names])
            for name, begun_marks in zip(names, begun, strict=True):
                ids = wanted[name]
                if begun_marks is None and not ids:
                    withdrawn.setdefault(run, []).append(name)
                else:
                    marks.append((json.dumps(sorted(ids)).encode(), f"{there}/{name}/cancel"))
            self._transport.remove([f"{there}/{name}" for name in withdrawn.get(run, ())])
        if marks:
            self._transport.put(marks)
        return withdrawn

    def sweep(self, runs: Collection[str]) -> None:
        """Runners whose folder is gone end by themselves."""
        self._transport.remove([self._remote.spool_dir(run) for run in runs])

    def _remove(self, seen: Mapping[str, Sequence[str]], dropped: Mapping[str, Sequence[str]]) -> None:
        paths: list[str] = []
        for run, marks in seen.items():
            there = self._remote.spool_dir(run)
            for mark in marks:
                chunk, _, what = mark.rpartition(".")
                if what != "end":
                    paths.append(f"{there}/{chunk}/result-{what}.zip")
                paths.append(f"{there}/done/{mark}")
        for run, chunks in dropped.items():
            there = self._remote.spool_dir(run)
            bases = set(chunks)
            (entries,) = self._transport.list([there])
            paths += [f"{there}/{entry.name}" for entry in entries or () if _base(entry.name) in bases]
        if paths:
            self._transport.remove(paths)

    def _marks(self, runs: Sequence[str]) -> dict[str, dict[str, list[tuple[str, int]]]]:
        found: dict[str, dict[str, list[tuple[str, int]]]] = {}
        listed = self._transport.list([f"{self._remote.spool_dir(run)}/done" for run in runs])
        for run, entries in zip(runs, listed, strict=True):
            names = [entry.name for entry in entries or ()]
            if not names:
                continue
            # The end of a chunk is asked for its packs, those of the folders beside it too.
            ended = {_base(name.rpartition(".")[0]) for name in names if name.endswith(".end")}
            packs = self._packs(run, ended) if ended else {}
            marks = found.setdefault(run, {})
            for name in names:
                chunk, _, what = name.rpartition(".")
                if what == "end":
                    marks[name] = packs.get(_base(chunk), [])
                else:
                    marks[name] = [(f"{chunk}/result-{what}.zip", 0)]
        return found

    def _missing(self, run: str, chunks: Sequence[str]) -> list[str]:
        """Those of chunks that nobody there has; that others are done is said again."""
        there = self._remote.spool_dir(run)
        jobs, entries = self._transport.list([f"{there}/jobs", there])
        if any(entry.name.endswith(".json") for entry in jobs or ()):
            return []  # somebody is at it; and which chunks those are is not to be seen from here
        folders: dict[str, list[str]] = {}
        for entry in entries or ():
            folders.setdefault(_base(entry.name), []).append(entry.name)
        names = [name for chunk in chunks for name in folders.get(chunk, ())]
        marks = dict(
            zip(names, self._transport.read([f"{there}/{name}/marks" for name in names]), strict=True)
        )
        done = {_base(name) for name, content in marks.items() if content and runner.is_done(content)}
        self._transport.put([(b"", f"{there}/done/{chunk}.end") for chunk in chunks if chunk in done])
        return [chunk for chunk in chunks if chunk not in done]

    def _packs(self, run: str, chunks: Collection[str]) -> dict[str, list[tuple[str, int]]]:
        there = self._remote.spool_dir(run)
        (entries,) = self._transport.list([there])
        folders = [entry.name for entry in entries or () if _base(entry.name) in chunks]
        found: dict[str, list[tuple[str, int]]] = {}
        for folder, files in zip(
            folders, self._transport.list([f"{there}/{folder}" for folder in folders]), strict=True
        ):
            found.setdefault(_base(folder), []).extend(
                (f"{folder}/{file.name}", file.size) for file in files or () if _is_pack(file)
            )
        return found

    def _hosts(self) -> tuple[int, list[str]]:
        """The cores of the workers that live, and the nodes that are broken."""
        work = self._remote.work_dir
        hosts, broken = self._transport.list([f"{work}/hosts", f"{work}/broken"])
        names = [
            entry.name
            for entry in hosts or ()
            if not entry.name.startswith(".") and time.time() - entry.mtime < runner.ALIVE_S
        ]
        told = self._transport.read([f"{work}/hosts/{name}" for name in names])
        cores = sum(int(json.loads(content).get("cores", 0)) for content in told if content)
        return cores, [entry.name for entry in broken or ()]

    def _problems(self, runs: Sequence[str]) -> list[str]:
        there = [self._remote.spool_dir(run) for run in runs]
        told = self._transport.read([f"{run}/{name}" for run in there for name in ("problem", "undelivered")])
        problems = {str(json.loads(content)) for content in told[::2] if content}
        return sorted(problems | {content.decode().strip() for content in told[1::2] if content})


def _base(folder: str) -> str:
    """The chunk that a folder belongs to: its own, or that of somebody who went on with it."""
    return folder.partition("+")[0]


def _is_pack(entry: Entry) -> bool:
    return entry.name.startswith("result-") and entry.name.endswith(".zip")
