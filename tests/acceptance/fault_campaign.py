"""A campaign of thousands of calculations that is run while things break, and what is true of it then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from fault_site import FaultSite, wait_until

from grange.core.process import State
from grange.core.profile import Profile

COUNT = 3000
#: So many are under way when something breaks.
IN_FLIGHT = 2000

SCRIPT = """
import json, sys
import grange as gr

given = json.loads(sys.argv[1])
profile = gr.open(given["home"])
campaign = gr.Campaign(given["name"], profile)
job = gr.ShellJob(given["program"] + " {n} {tally} {seconds}")
campaign.map(
    job, n=range(given["count"]), tally=given["tally"], seconds=gr.fixed(given["seconds"]),
    resources=gr.Resources(**given["resources"]),
)
notes = open(given["notes"], "a", buffering=1)
last = [""]

def show(progress):
    if progress.note != last[0]:
        last[0] = progress.note
        print(progress.done, progress.note, file=notes)

done = campaign.run(executor=given["computer"], progress=show)
print(json.dumps([done.done, done.failed, done.reused]))
"""


class FaultCampaign:
    """One campaign on one computer. seconds: how long a calculation sleeps."""

    def __init__(
        self,
        site: FaultSite,
        profile: Profile,
        name: str,
        *,
        count: int = COUNT,
        seconds: float = 0.02,
        program: Path | None = None,
        **resources: float,
    ) -> None:
        self.site = site
        self.profile = profile
        self.name = name
        self.count = count
        self.tally = site.place / f"tally-{name}-{time.time_ns()}"
        self.notes = profile.home / "notes"
        self._given = {
            "home": str(profile.home),
            "name": name,
            "computer": site.computer.label,
            "program": str(program or site.program),
            "count": count,
            "tally": str(self.tally),
            "seconds": seconds,
            "notes": str(self.notes),
            "resources": resources,
        }
        self.process: subprocess.Popen[str] | None = None

    # -- running ---------------------------------------------------------------------------------

    def start(self) -> FaultCampaign:
        """Run it in a process of its own."""
        with open(self.profile.home / "errors", "a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, json.dumps(self._given)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        return self

    def end(self, limit_s: float = 120.0) -> list[int]:
        """Wait until it has ended by itself: done, failed, reused."""
        assert self.process is not None
        try:
            out, _ = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.told()}") from None
        assert self.process.returncode == 0, self.told()
        answer: list[int] = json.loads(out)
        return answer

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the process that runs it."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)
            self.process.communicate(timeout=30)

    def told(self) -> str:
        """What there is to know about one that does not do as it should."""
        said = [
            path.read_text()[-3000:] for path in (self.profile.home / "errors", self.notes) if path.exists()
        ]
        return "\n".join([f"{self.finished()} of {self.count} ended; workers: {self.site.workers()}", *said])

    # -- how far it is ---------------------------------------------------------------------------

    def finished(self) -> int:
        return self._count("finished_at IS NOT NULL")

    def in_flight(self) -> int:
        """How many are recorded as under way."""
        return self._count("state = 'waiting'")

    def _count(self, condition: str) -> int:
        with self.profile.transaction() as cursor:
            cursor.execute(f"SELECT count(*) FROM process WHERE {condition}")
            return int((cursor.fetchone() or (0,))[0])

    def wait_for(self, count: int, limit_s: float = 60.0) -> None:
        """Wait until so many have ended, and fail if the run has."""
        assert self.process is not None

        def reached() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"it ended too early: {self.told()}"
            return self.finished() >= count

        wait_until(reached, limit_s, self.told)

    def in_midst(self) -> None:
        """Wait until it is well under way: all nodes are at work, thousands of calculations are in flight."""
        assert self.process is not None

        def reached() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"it ended too early: {self.told()}"
            return sum(self.started().values()) >= 50 and self.in_flight() >= IN_FLIGHT

        wait_until(reached, 60, self.told)

    def in_midst_of(self, begun: int) -> None:
        """Wait until so many calculations, which take long, have begun, and thousands are in flight."""
        wait_until(lambda: len(self.started()) >= begun and self.in_flight() >= IN_FLIGHT, 60, self.told)

    # -- afterwards ------------------------------------------------------------------------------

    def started(self) -> Counter[int]:
        """How often each calculation was started, as it tells itself."""
        lines = self.tally.read_text().splitlines() if self.tally.exists() else []
        return Counter(int(line.split()[0]) for line in lines)

    def nodes(self) -> Counter[str]:
        """How many calculations were started on each node."""
        return Counter(line.split()[2] for line in self.tally.read_text().splitlines())

    def repeated(self) -> int:
        """How many starts there were beyond one for each calculation."""
        return sum(self.started().values()) - len(self.started())

    def check(self) -> None:
        """Every calculation ended exactly once with the right output, and nothing is left anywhere."""
        with self.profile.transaction() as cursor:
            cursor.execute(
                "SELECT state::text, exit_status, exit_message, count(*) FROM process GROUP BY 1, 2, 3"
            )
            assert cursor.fetchall() == [(State.FINISHED.value, 0, None, self.count)]
            self._check_outputs(cursor)
        assert set(self.started()) == set(range(self.count))
        self.check_left_overs()

    def _check_outputs(self, cursor: object) -> None:
        cursor.execute(  # type: ignore[attr-defined]
            """
            SELECT source_id, label, count(*) FROM link WHERE type = 'create'
            GROUP BY 1, 2 HAVING count(*) <> 1
            """
        )
        assert cursor.fetchall() == []  # type: ignore[attr-defined]
        cursor.execute(  # type: ignore[attr-defined]
            """
            SELECT i.attributes->>'value', o.attributes->>'value' FROM process p
            JOIN link li ON li.target_id = p.node_id AND li.type = 'input_calc' AND li.label = 'n'
            JOIN node i ON i.id = li.source_id
            JOIN link lo ON lo.source_id = p.node_id AND lo.type = 'create' AND lo.label = 'stdout'
            JOIN node o ON o.id = lo.target_id
            """
        )
        rows = cursor.fetchall()  # type: ignore[attr-defined]
        assert len(rows) == self.count
        assert {int(n): int(text) for n, text in rows} == {n: 3 * n for n in range(self.count)}
        cursor.execute(  # type: ignore[attr-defined]
            "SELECT count(*) FROM link WHERE type = 'create' AND label = 'retrieved'"
        )
        assert cursor.fetchone() == (self.count,)  # type: ignore[attr-defined]

    def check_left_overs(self) -> None:
        """Nothing in the spools, here and there; no runner at work."""
        here = [path for path in self.profile.spool.rglob("*") if path.is_file()]
        assert here == []
        assert self.site.runs() == []
        wait_until(lambda: not self.site.runners(), 20, self.site.runners)
