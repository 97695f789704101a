"""What every way of running chunks on a cluster must do, tried on a real one: processes of the login node,
Slurm's job arrays, HyperQueue by its wheel and by its program, an account that may run next to nothing.

What holds for all executors is in test_executor.py; here is what holds because tasks go on elsewhere.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster
from test_executor import Delivered, drain, wait_until

from grange.farm import Batch, CommandTask, FunctionTask, Resources, TaskRefused, ship
from grange.farm.allocation import AllocationPaths, job_script, request_on, settings_text
from grange.farm.cluster_executor import ClusterExecutor
from grange.farm.computer import Computer
from grange.farm.connection import open_transport
from grange.farm.monitor import Monitor
from grange.farm.offer import Offer
from grange.farm.remote import Remote
from grange.farm.stash import Stash
from grange.farm.transport import Transport

#: The program hq, which is in no package registry: on PATH, or named by this variable.
HQ = os.environ.get("GRANGE_TEST_HQ") or shutil.which("hq") or ""
KINDS = ["direct", "slurm", "private-wheel", "restricted", *(["hq"] if HQ else [])]


@dataclass(slots=True)
class Site:
    """A computer of the test cluster, and a folder there that tasks may write to."""

    cluster: Cluster
    computer: Computer
    transport: Transport
    tally: Path

    def executor(self, spool: Path) -> ClusterExecutor:
        return ClusterExecutor(spool, self.computer, self.transport, flush_s=0.5)

    def allocate(self, *, nodes: int = 2, walltime_s: int = 900, idle_s: int = 300) -> str:
        """A job with workers; its number."""
        remote = Remote(self.transport, self.computer)
        remote.prepare()
        request = request_on(self.computer, nodes=nodes, walltime_s=walltime_s, idle_s=idle_s)
        paths = AllocationPaths(remote.work_dir, remote.code_dir)
        folder = paths.folder(request.token)
        self.transport.put(
            [
                (settings_text(self.computer, request, paths).encode(), f"{folder}/allocation.json"),
                (job_script(self.computer, request, paths).encode(), f"{folder}/job.sh"),
            ]
        )
        done = self.transport.run(["sbatch", "--parsable", "job.sh"], cwd=folder)
        assert done.status == 0, done.stderr
        return done.stdout.decode().strip()

    def ran(self) -> list[str]:
        """The names that tasks have left, one for each time that they ran."""
        return [name for path in self.tally.iterdir() for name in [path.name] * path.read_text().count("x")]


def computer_of(kind: str, cluster: Cluster) -> Computer:
    label = f"contract-{kind}"
    if kind == "restricted":
        return cluster.restricted_computer(label)
    if kind == "hq":
        return cluster.computer(label, hyperqueue="hq", hq_binary=HQ)
    if kind == "private-wheel":
        return cluster.computer(label)
    scheduler = "direct" if kind == "direct" else "slurm"
    slots = 4 if kind == "direct" else 0
    return cluster.computer(label, hyperqueue="none", scheduler=scheduler, slots=slots, max_queued_jobs=8)


@pytest.fixture(scope="module", params=KINDS)
def site(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    kind = str(request.param)
    if kind == "private-wheel" and not cluster.confined:
        pytest.skip("network namespaces are refused here: the wheel's server would be open to all")
    computer = computer_of(kind, cluster)
    tally = Path(cluster.work_dir) / f"tally-{kind}"
    cluster.shell(f"mkdir -p {tally}")
    transport = open_transport(computer, tmp_path_factory.mktemp("sockets"))
    made = Site(cluster, computer, transport, tally)
    if computer.hyperqueue != "none":
        made.allocate()
    yield made
    transport.close()
    cluster.cancel_all()


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def executor(site: Site, spool: Path) -> Iterator[ClusterExecutor]:
    made = site.executor(spool)
    yield made
    made.close()
    assert list(spool.iterdir()) == []
    there = Remote(site.transport, site.computer).spool_dir("")
    assert site.transport.list([there]) in ([None], [[]])


def shell(task_id: str, command: str, attempt: int = 1) -> CommandTask:
    return CommandTask(task_id, ("/bin/sh", "-c", command), attempt=attempt)


def tallied(site: Site, name: str, then: str = ":") -> CommandTask:
    return shell(name, f"printf x >> {site.tally}/{name}; {then}; echo {name} is done")


def test_files_go_there_and_come_back(executor: ClusterExecutor) -> None:
    content = os.urandom(200_000)
    tasks = [
        CommandTask(
            f"t{n}",
            ("/bin/sh", "-c", "cat in.bin > out.bin; cat; echo error >&2; exit $0", str(n % 3)),
            files={"in.bin": content, "given": f"input {n}\n".encode()},
            stdin="given",
            retrieve=("out.*",),
            environment={"A": "b"},
        )
        for n in range(30)
    ]
    executor.submit(Batch(tuple(tasks)))
    delivered = drain(executor, 90)
    for n in range(30):
        result = delivered.results[f"t{n}"]
        assert (result.outcome, result.return_code) == ("finished", n % 3)
        assert delivered.text(f"t{n}") == f"input {n}\n"
        assert delivered.blobs[result.files["out.bin"]] == content


def test_thousands_in_few_pieces(site: Site, executor: ClusterExecutor) -> None:
    count = 3000
    executor.submit(Batch(tuple(shell(f"n{n}", f"echo {n}") for n in range(count))))
    delivered = drain(executor, 120)
    assert len(delivered.results) == count
    assert {delivered.text(f"n{n}") for n in range(count)} == {f"{n}\n" for n in range(count)}


def scaled(value: float, factor: float) -> float:
    return value * factor * OFFSET


OFFSET = 2.0


def test_functions_travel_by_value(executor: ClusterExecutor) -> None:
    function = ship(scaled)
    executor.submit(
        Batch(tuple(FunctionTask(f"f{n}", function, {"value": n, "factor": 1.5}) for n in range(40)))
    )
    delivered = drain(executor, 90)
    values = [delivered.results[f"f{n}"].outputs["result"] for n in range(40)]
    assert values == [["float", n * 3.0] for n in range(40)]


def test_a_program_that_is_missing_everywhere(executor: ClusterExecutor) -> None:
    began = time.monotonic()
    executor.submit(Batch(tuple(CommandTask(f"m{n}", ("/no/such/program",)) for n in range(20))))
    delivered = drain(executor, 120)
    assert {result.outcome for result in delivered.results.values()} == {"program_missing"}
    assert time.monotonic() - began < 60


def test_cancel_what_runs_and_what_waits(site: Site, executor: ClusterExecutor) -> None:
    tasks = [tallied(site, f"cancel{n}", "sleep 300") for n in range(60)]
    executor.submit(Batch(tuple(tasks)))
    wait_until(lambda: any(name.startswith("cancel") for name in site.ran()), 60)
    executor.cancel()
    delivered = drain(executor, 60)
    assert len(delivered.results) == 60
    assert {result.outcome for result in delivered.results.values()} == {"cancelled"}
    begun = {name for name in site.ran() if name.startswith("cancel")}
    told = {
        task_id for task_id, result in delivered.results.items() if result.message == "cancelled while it ran"
    }
    assert told == begun


def test_cancel_one_of_many(site: Site, executor: ClusterExecutor) -> None:
    executor.submit(Batch((shell("long", "sleep 300"), *(shell(f"s{n}", "sleep 0.2") for n in range(6)))))
    time.sleep(1)
    executor.cancel(["long"])
    delivered = drain(executor, 60)
    assert delivered.results["long"].outcome == "cancelled"
    assert all(delivered.results[f"s{n}"].outcome == "finished" for n in range(6))


def test_what_can_never_run_there_is_refused(site: Site, executor: ClusterExecutor) -> None:
    with pytest.raises(TaskRefused, match="GPU"):
        executor.submit(Batch((shell("a", "true"),), Resources(gpus=1)))
    if site.computer.scheduler == "direct":
        with pytest.raises(TaskRefused, match="cpus"):
            executor.submit(Batch((shell("a", "true"),), Resources(cpus=40)))


def test_limits_of_a_task(executor: ClusterExecutor) -> None:
    executor.submit(Batch((shell("late", "sleep 60"),), Resources(walltime_s=1)))
    assert drain(executor, 60).results["late"].outcome == "walltime_exceeded"


def test_monitors_and_stashes_work_there(site: Site, executor: ClusterExecutor) -> None:
    steps = 3

    def enough(text: str) -> str | None:
        return f"{steps} steps" if text.count("step") >= steps else None

    script = "echo density > rho; while true; do echo step; sleep 0.05; done"
    to = f"{site.tally}-stash"
    tasks = [
        CommandTask(
            f"w{n}",
            ("/bin/sh", "-c", script),
            monitors=(Monitor("stdout.txt", look, every_s=0.2),),
            stash=Stash(("rho",), to),
        )
        for n, look in enumerate((ship(enough), "^step$"))
    ]
    executor.submit(Batch(tuple(tasks)))
    delivered = drain(executor, 90)
    found = delivered.results
    assert {result.outcome for result in found.values()} == {"stopped"}
    assert {found[name].message for name in ("w0", "w1")} == {"3 steps", "stdout.txt: step"}
    assert delivered.text("w0").startswith("step\nstep\nstep\n")
    for result in found.values():
        assert result.stash is not None
        assert result.stash.path.startswith(f"{to}/")
        assert Path(result.stash.path, "rho").read_text() == "density\n"


def test_what_was_sent_goes_on_without_us(site: Site, spool: Path) -> None:
    """Closed in the middle: the next one finds what was done meanwhile, and nothing has run twice."""
    first = site.executor(spool)
    first.submit(Batch(tuple(tallied(site, f"on{n}", "sleep 0.1") for n in range(100))))
    delivered = Delivered()
    until = time.monotonic() + 60
    while not delivered.results and time.monotonic() < until:
        packs = first.poll(0.5)
        delivered.take(packs)
        first.acknowledge(packs)
    assert delivered.results
    wait_until(lambda: not first.unsent, 30)
    first.close()
    go_on(site, spool, delivered, {f"on{n}" for n in range(100)})


SUBMIT = """
import sys; sys.path[:0] = {paths!r}
from pathlib import Path
from cluster import Cluster
from test_cluster_executor import *
cluster = Cluster.attach(Path({folder!r}))
computer = computer_of({kind!r}, cluster)
transport = open_transport(computer, Path({sockets!r}))
site = Site(cluster, computer, transport, Path({tally!r}))
executor = site.executor(Path({spool!r}))
executor.submit(Batch(tuple(tallied(site, f"kill{{n}}", "sleep 0.1") for n in range(100))))
while True:
    packs = executor.poll(0.5)
    executor.acknowledge(packs)
    print("\\n".join(result.id for pack in packs for result in pack.results), flush=True)
"""


def test_kill_of_the_submitter(site: Site, spool: Path, tmp_path: Path) -> None:
    kind = site.computer.label.removeprefix("contract-")
    here = Path(__file__).parent
    script = SUBMIT.format(
        paths=[str(here), str(here.parent)], folder=str(site.cluster.folder), kind=kind,
        sockets=str(tmp_path), tally=str(site.tally), spool=str(spool),
    )  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    recorded = {process.stdout.readline().strip()}
    while "" in recorded:
        recorded = {process.stdout.readline().strip()}
    wait_until(lambda: len([name for name in site.ran() if name.startswith("kill")]) > 20, 60)
    process.send_signal(signal.SIGKILL)
    recorded |= set(process.stdout.read().split())
    process.wait()
    delivered = Delivered()
    go_on(site, spool, delivered, {f"kill{n}" for n in range(100)} - recorded)


def go_on(site: Site, spool: Path, delivered: Delivered, wanted: set[str]) -> None:
    heir = site.executor(spool)
    packs = heir.recover()
    delivered.take([pack for pack in packs if not {r.id for r in pack.results} & delivered.results.keys()])
    heir.acknowledge(packs)
    under_way = heir.under_way()
    assert all(attempt == 1 for attempt in under_way.values())
    left = wanted - delivered.results.keys()
    assert left <= under_way.keys()
    heir.go_on(left)
    until = time.monotonic() + 90
    while left and time.monotonic() < until:
        packs = heir.poll(1.0)
        for pack in packs:
            for result in pack.results:
                assert result.outcome == "finished"
                left.discard(result.id)
        heir.acknowledge(packs)
    assert not left
    ran = site.ran()
    assert {name: ran.count(name) for name in wanted} == dict.fromkeys(wanted, 1)
    heir.close()
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("site", ["slurm"], indirect=True)
def test_the_bound_on_queued_jobs_holds_for_all(site: Site, tmp_path: Path) -> None:
    """Two at once: never more elements in the queue than the computer allows to all of us together. (That of
    allocations is in tests/integration/test_allocation.py.)"""
    most = 0
    with site.executor(tmp_path / "one") as one, site.executor(tmp_path / "two") as two:
        for name, executor in (("one", one), ("two", two)):
            executor.submit(Batch(tuple(shell(f"{name}{n}", "sleep 0.5") for n in range(60))))
        results = 0
        until = time.monotonic() + 120
        while results < 120:
            assert time.monotonic() < until
            for executor in (one, two):
                packs = executor.poll(0.2)
                executor.acknowledge(packs)
                results += sum(len(pack.results) for pack in packs)
            most = max(most, len(site.cluster.shell("squeue -h -r").split("\n")) - 1)
    assert 2 <= most <= site.computer.max_queued_jobs


def test_what_no_allocation_can_hold_is_refused(site: Site, spool: Path) -> None:
    offer = Offer(cores=8, nodes=2, walltime_s=600)
    with ClusterExecutor(spool, site.computer, site.transport, offer=offer) as executor:
        with pytest.raises(TaskRefused, match="walltime of 3600 s"):
            executor.submit(Batch((shell("a", "true"),), Resources(walltime_s=3600)))
        if site.computer.scheduler == "slurm":
            with pytest.raises(TaskRefused, match="3 nodes"):
                executor.submit(Batch((shell("a", "true"),), Resources(cpus=12)))
