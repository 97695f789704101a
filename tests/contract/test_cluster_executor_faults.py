"""What an executor does when what it sent, or what should come back, is lost; or the computer is away.

The computer is this machine, used as another one; what is in its way are wrappers of the real transport.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_executor import Delivered, drain, shell, wait_until

from grange.farm import Batch, cluster_executor
from grange.farm.cluster_executor import ClusterExecutor
from grange.farm.computer import Computer
from grange.farm.errors import ExecutorUnavailable, TransportUnavailable
from grange.farm.local_transport import LocalTransport
from grange.farm.transport import Completed


class Away(LocalTransport):
    """A transport that can be cut, and that may spoil what it fetches."""

    def __init__(self) -> None:
        super().__init__("here")
        self.cut = False
        #: Told of each pack that was fetched, before anybody else is.
        self.fetched: Callable[[Path], object] = lambda path: None

    def run(self, argv: Sequence[str], **more: Any) -> Completed:
        self._sound()
        return super().run(argv, **more)

    def put(self, files: Sequence[tuple[Path | bytes, str]], **more: Any) -> None:
        self._sound()
        super().put(files, **more)

    def get(self, files: Sequence[tuple[str, Path]]) -> None:
        self._sound()
        super().get(files)
        for _, path in files:
            self.fetched(path)

    def _sound(self) -> None:
        if self.cut:
            raise TransportUnavailable("here", "it is cut off")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The work directory there."""
    return tmp_path / "there"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is soon looked for again, and soon given up."""
    for name, seconds in (("LOOK_S", 0.5), ("LOOK_AGAIN_S", 0.2), ("LOST_S", 1.0), ("WAIT_S", 0.5)):
        monkeypatch.setattr(cluster_executor, name, seconds)
    monkeypatch.setattr(cluster_executor, "REFUSAL_PAUSE_S", 0.2)


@pytest.fixture
def transport() -> Away:
    return Away()


@pytest.fixture
def make(there: Path, spool: Path, transport: Away) -> Iterator[Callable[..., ClusterExecutor]]:
    """Makes executors on the same spool."""
    computer = Computer(
        label="here",
        transport="local",
        scheduler="direct",
        work_dir=str(there),
        python=sys.executable,
        slots=2,
    )
    made: list[ClusterExecutor] = []

    def one(warm: bool = True) -> ClusterExecutor:
        made.append(ClusterExecutor(spool, computer, transport, flush_s=0.1))
        if warm:  # what such tasks take is known then: they go together
            made[-1].submit(Batch(tuple(shell(f"warm{n}", "true") for n in range(4))))
            drain(made[-1])
        return made[-1]

    yield one
    transport.cut = False
    for executor in made:
        executor.close()
    assert list(spool.iterdir()) == []
    assert [path for path in (there / "spool").iterdir() if any(path.glob("chunk-*"))] == []


def die(executor: ClusterExecutor) -> None:
    """End an executor as a killed process does: nothing is said or cleared, its locks are free."""
    with executor._changed:
        executor._closing = True
        executor._changed.notify_all()
    for thread in executor._threads:
        thread.join(30)
    for run in executor._runs.values():
        run._run.release()
    executor._runs.clear()


def tasks(count: int, script: str = "sleep 0.05; echo {n}") -> Batch:
    return Batch(tuple(shell(f"t{n}", script.format(n=n)) for n in range(count)))


def check(delivered: Delivered, count: int) -> None:
    assert {name: delivered.text(name) for name in delivered.results} == {
        f"t{n}": f"{n}\n" for n in range(count)
    }


def test_chunks_that_somebody_removes_are_sent_again(
    make: Callable[..., ClusterExecutor], there: Path, tmp_path: Path
) -> None:
    executor = make()
    tally = tmp_path / "tally"
    executor.submit(tasks(60, f"echo {{n}} >> {tally}; sleep 0.05; echo {{n}}"))
    wait_until(lambda: tally.exists() and not executor.unsent, 20)
    (run,) = (there / "spool").iterdir()
    shutil.rmtree(run)
    check(drain(executor), 60)


def test_results_that_are_gone_there_are_computed_again(
    make: Callable[..., ClusterExecutor], there: Path, transport: Away, tmp_path: Path
) -> None:
    executor = make()
    tally = tmp_path / "tally"
    executor.submit(tasks(8, f"echo {{n}} >> {tally}; sleep 0.2; echo {{n}}"))
    wait_until(tally.exists, 30)
    transport.cut = True
    wait_until(lambda: any((there / "spool").glob("*/done/*.end")), 30)
    for path in (there / "spool").glob("*/chunk-*/result-*.zip"):
        path.unlink()
    transport.cut = False
    check(drain(executor), 8)
    assert len(tally.read_text().split()) > 8


def test_a_pack_that_cannot_be_read_ends_nothing(
    make: Callable[..., ClusterExecutor], transport: Away
) -> None:
    spoiled: list[Path] = []

    def spoil(path: Path) -> None:
        if not spoiled:
            spoiled.append(path)
            path.write_bytes(path.read_bytes()[:-10])

    transport.fetched = spoil
    executor = make()
    executor.submit(tasks(20))
    check(drain(executor), 20)
    assert spoiled


def test_results_that_are_lost_again_and_again_are_told(
    make: Callable[..., ClusterExecutor], transport: Away
) -> None:
    executor = make()
    transport.fetched = lambda path: path.write_bytes(b"rubbish")
    executor.submit(tasks(2))
    with pytest.raises(ExecutorUnavailable, match="were lost 4 times: see whether"):
        drain(executor)
    transport.fetched = lambda path: None
    die(executor)
    heir = make(False)
    heir.recover()
    heir.go_on(heir.under_way())
    check(drain(heir), 2)


def test_to_end_tasks_waits_for_nobody(make: Callable[..., ClusterExecutor], transport: Away) -> None:
    executor = make()
    executor.submit(tasks(30, "sleep 30"))
    wait_until(lambda: executor.unsent == 0, 20)
    transport.cut = True
    began = time.monotonic()
    executor.cancel()
    assert time.monotonic() - began < 1
    threading.Timer(1.0, lambda: setattr(transport, "cut", False)).start()
    delivered = drain(executor, 20)
    assert {result.outcome for result in delivered.results.values()} == {"cancelled"}
    assert len(delivered.results) == 30


def test_what_was_written_and_not_sent_when_we_died_never_starts_if_it_is_to_end(
    make: Callable[..., ClusterExecutor], transport: Away, tmp_path: Path, spool: Path
) -> None:
    executor = make()
    executor.remote.prepare()
    transport.cut = True
    executor.submit(tasks(6, f"echo {{n}} >> {tmp_path}/tally"))
    wait_until(lambda: list(spool.glob("*/chunk-*/chunk.zip")), 20)
    die(executor)
    transport.cut = False
    heir = make(False)
    under_way = heir.under_way()
    assert len(under_way) == 6
    heir.go_on(under_way, end_others=False)  # as a campaign is killed that nobody runs
    heir.cancel(under_way)
    delivered = drain(heir, 20)
    assert {result.outcome for result in delivered.results.values()} == {"cancelled"}
    assert not (tmp_path / "tally").exists()


def test_what_was_recorded_before_we_died_keeps_no_chunk_open(
    make: Callable[..., ClusterExecutor], there: Path, spool: Path
) -> None:
    """All results came, the chunk was removed there, and some of its results were recorded: then we died."""
    executor = make()
    executor.submit(Batch((shell("t0", "echo 0"), shell("t1", "sleep 1; echo 1"))))
    packs = executor.poll(20)
    executor.acknowledge(packs)
    wait_until(lambda: list(spool.glob("*/chunk-*/*result-2.zip")), 20)
    wait_until(lambda: not list((there / "spool").glob("*/chunk-*")), 20)
    die(executor)
    heir = make(False)
    (pack,) = heir.recover()
    assert [result.id for result in pack.results] == ["t1"]
    heir.acknowledge([pack])
    heir.go_on(())  # both are recorded
    wait_until(lambda: not list(spool.glob("*/chunk-*")), 10)


def test_a_run_that_could_not_be_removed_there_is_removed_by_the_next(
    make: Callable[..., ClusterExecutor], there: Path, spool: Path, transport: Away
) -> None:
    executor = make()
    executor.submit(tasks(2))
    check(drain(executor), 2)
    transport.cut = True
    executor.close()
    assert len(list(spool.iterdir())) == 1
    assert len(list((there / "spool").iterdir())) == 1
    transport.cut = False
    make(False).close()
    assert list(spool.iterdir()) == []
    assert list((there / "spool").iterdir()) == []
