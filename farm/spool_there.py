"""The spool on the other side: how news of runs is had, and how tasks there are ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from grange.farm.remote import Remote

#: How long a command of the agent may take besides what it waits. Units: seconds.
PATIENCE_S = 90.0


@dataclass(frozen=True, slots=True)
class News:
    """What there is to be fetched, and how it stands.

    marks: run → mark → packs (path in the run's folder, size in bytes; -1 for one that is gone). A mark is
    "<chunk>.<n>" for one pack, or "<chunk>.end", which names all that there are. cores: at work for us now.
    broken: nodes that get nothing more. problems: what a person should know. missing: run → those of the
    chunks asked for that nobody there has.
    """

    marks: Mapping[str, Mapping[str, Sequence[tuple[str, int]]]]
    cores: int
    broken: Sequence[str] = ()
    problems: Sequence[str] = ()
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)


class SpoolThere(Protocol):
    """The runs of one computer's spool. Every method may be repeated after any error; those of Transport."""

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
        """Wait for news, up to wait_s; what comes within gather_s of the first comes with it.

        seen: run → marks that are dealt with: they and their packs are removed. dropped: run → chunks that
        nobody needs any more. expected: run → chunks that should be there; of those that are done, the end is
        told again.
        """
        ...

    def cancel(self, chunks: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
        """End tasks: run → chunk → ids (empty: all of the chunk).

        Returns run → chunks that were withdrawn, or are not there: no runner had begun them, and none will.
        """
        ...

    def sweep(self, runs: Collection[str]) -> None:
        """Remove runs, whatever is in them; what still runs for them is ended first."""
        ...


class AgentSpool:
    """The spool where our agent may be run: one command serves thousands of tasks."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

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
        """One command, which waits there."""
        answer = self._remote.ask(
            "poll",
            {
                "runs": sorted(runs),
                "seen": seen,
                "drop": dropped,
                "open": expected,
                "wait_s": wait_s,
                "gather_s": gather_s,
            },
            wait_s + PATIENCE_S,
        )
        return News(
            answer["marks"], int(answer["cores"]), answer["broken"], answer["problems"], answer["missing"]
        )

    def cancel(self, chunks: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
        """One command; what has not begun is said to be cancelled by the agent."""
        missing: dict[str, list[str]] = self._remote.ask("cancel", {"chunks": chunks})["missing"]
        return missing

    def sweep(self, runs: Collection[str]) -> None:
        """One command."""
        self._remote.ask("sweep", {"runs": sorted(runs)}, 30.0)
