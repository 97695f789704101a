"""Workflows of the tests of faults, the client that submits them, and what is true of them afterwards.

Each is three levels deep: a root calls sub-workflows, in parallel and in sequence, and these call what the
farm runs. Which root number n is, and what it is given, follow from n alone.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grange as gr
from grange.core.database import Cursor
from grange.core.errors import DatabaseUnavailable
from grange.core.local_run import run_here
from grange.core.pending_call import PendingCall
from grange.core.profile import Profile, open_profile
from grange.core.submit import _pending

#: Roots of a kind differ by their number, up to here; then they begin anew.
NUMBERS = 6
#: Every so many roots one is to be run through HyperQueue.
HYPERQUEUE_EACH = 8
#: The lock, in the tests' database, of the client that submits.
CLIENT_LOCK = 0x74_65_73_74
#: Where the client reads how many roots it may submit.
RELEASED = "released"


# -- calculations: inline, Python functions and jobs on the farm


@gr.calcfunction
def add(x: int, y: int) -> int:
    return x + y


@gr.calcfunction
def halve(x: int) -> int:
    return x // 2


@gr.calcfunction
def triple(x: int) -> int:
    return 3 * x + 1


@gr.calcfunction
def refuse(x: int) -> gr.ExitCode:
    return gr.ExitCode(310, f"{x} is refused")


def square(x: int) -> int:
    time.sleep(0.01)
    return x * x


def shared_square(x: int) -> int:
    """Few inputs: equal calculations answer each other."""
    time.sleep(0.01)
    return x * x


class Cube(gr.CalcJob):
    """A program with files, which fails for some inputs."""

    class Inputs:
        x: int

    class Outputs:
        cube: int
        report: gr.SingleFile

    TOO_LARGE = gr.ExitCode(311, "{x} is too large")

    def prepare(self, inputs: Any) -> gr.Command:
        script = "sleep 0.03; cat in.txt; echo $(($X * $X * $X)) > cube; seq $X > lines"
        return gr.Command(
            ["sh", "-c", script],
            files={"in.txt": f"the cube of {inputs.x}\n"},
            environment={"X": str(inputs.x)},
            retrieve=["cube", "lines"],
        )

    def parse(self, files: Any) -> dict[str, object] | gr.ExitCode:
        if self.inputs.x > 5:
            return self.TOO_LARGE.format(x=self.inputs.x)
        return {
            "cube": int(files.text("cube")),
            "report": gr.SingleFile(files["stdout.txt"], "report.txt"),
        }


# -- the third level


@gr.workflow
def climb(start: int) -> gr.Data:
    """A loop and a branch on results, all of it in the worker."""
    value, steps = add(start, 0), 0
    while value.value != 1 and steps < 4:
        value = triple(value) if value.value % 2 else halve(value)
        steps += 1
    return value


@gr.workflow
def measure(x: int) -> gr.Data:
    """One Python function on the farm."""
    return add(gr.submit(square, x=x, cache=False).result(), 1)


# -- the second level


@gr.workflow
def branch(n: int) -> gr.Data:
    """In parallel a workflow and a calculation, then a job whose failure is seen to."""
    measured = gr.submit(measure, x=n)
    equal = gr.submit(shared_square, x=n.value % 3)
    total = add(climb(n), measured.result())
    total = add(total, equal.result())
    job = gr.submit(Cube, x=n, cache=False)
    job.wait()
    return add(total, job.outputs.cube) if job.is_finished_ok else add(total, 0)


class Pair(gr.WorkChain):
    """Steps: a while, an if, sub-workflows in parallel."""

    @classmethod
    def define(cls, spec: Any) -> None:
        super().define(spec)
        spec.input("n", valid_type=gr.Int)
        spec.input("rounds", valid_type=gr.Int, default=lambda: gr.Int(2))
        spec.output("total", valid_type=gr.Int)
        spec.exit_code(420, "ERROR_UNLIKED", "{n} is not liked")
        spec.outline(
            cls.setup,
            gr.while_(cls.goes_on)(cls.submit_some, cls.add_up),
            gr.if_(cls.is_unliked)(cls.refuse_it).else_(cls.result),
        )

    def setup(self) -> None:
        self.ctx.round = 0
        self.ctx.total = add(self.inputs.n, 1)

    def goes_on(self) -> bool:
        return bool(self.ctx.round < self.inputs.rounds.value)

    def submit_some(self) -> gr.ToContext:
        self.ctx.round += 1
        self.ctx.children = []
        for number in range(self.ctx.round):
            self.to_context(children=gr.append_(self.submit(climb, start=gr.Int(number + 2))))
        return gr.ToContext(measured=self.submit(measure, x=self.inputs.n))

    def add_up(self) -> None:
        for child in self.ctx.children:
            self.ctx.total = add(self.ctx.total, child.outputs.result)
        self.ctx.total = add(self.ctx.total, self.ctx.measured.outputs.result)
        self.report("round %d: %d", self.ctx.round, self.ctx.total.value)

    def is_unliked(self) -> bool:
        return bool(self.inputs.n.value == 4)

    def refuse_it(self) -> Any:
        return self.exit_codes.ERROR_UNLIKED.format(n=self.inputs.n.value)

    def result(self) -> None:
        self.out("total", self.ctx.total)


# -- the first level


@gr.workflow
def study(n: int) -> gr.Data:
    """Sub-workflows in parallel, then one in sequence."""
    below = [gr.submit(branch, n=n.value + number) for number in range(2)]
    total = add(n, 0)
    for future in below:
        total = add(total, future.result())
    return add(total, climb(n))


@gr.workflow
def careful(n: int) -> object:
    """Some of what it calls fails, and some of it, too."""
    try:
        refuse(n)
    except gr.ProcessFailed as error:
        if error.exit_status != 310:
            raise
    pair = gr.submit(Pair, n=n, rounds=1)
    pair.wait()
    if pair.exit_status == 420:
        return gr.ExitCode(430, "a pair was not liked")
    if n.value == 3:
        refuse(n)  # the end of this one
    if n.value == 5:
        raise ValueError(f"no {n.value}")
    return add(pair.outputs.total, branch(n))


class Survey(gr.WorkChain):
    """A WorkChain as a root: functions and WorkChains below it, at once."""

    @classmethod
    def define(cls, spec: Any) -> None:
        super().define(spec)
        spec.input("n", valid_type=gr.Int)
        spec.output("total", valid_type=gr.Int)
        spec.outline(cls.submit_all, cls.add_up)

    def submit_all(self) -> None:
        self.to_context(branch=self.submit(branch, n=self.inputs.n))
        self.to_context(pair=self.submit(Pair, n=gr.Int(self.inputs.n.value % 3), rounds=gr.Int(1)))

    def add_up(self) -> None:
        self.out("total", add(self.ctx.branch.outputs.result, self.ctx.pair.outputs.total))


ROOTS = (study, careful, Survey, Pair)


def kind_of(number: int) -> tuple[int, int]:
    """Of a root the workflow, as its place in ROOTS, and what it is given."""
    return number % len(ROOTS), number // len(ROOTS) % NUMBERS


def is_for_hyperqueue(number: int) -> bool:
    return number % HYPERQUEUE_EACH == HYPERQUEUE_EACH - 3


# -- the client


def submit_all(home: str, count: int, at_once: int, hyperqueue: bool) -> None:
    """Submit those of so many roots that are not recorded yet: a few at a time, at_once of them open.

    It may be killed at any time and begun again: each root has a label. Of two the second waits until the
    session of the first has ended.
    """
    folder = Path(home)
    with open_profile(folder) as profile:
        with profile.transaction() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (CLIENT_LOCK,))
            cursor.execute("SELECT label FROM node WHERE label LIKE 'root-%%'")
            known = {row[0] for row in cursor.fetchall()}
        missing = [number for number in range(count) if f"root-{number}" not in known]
        while missing:
            released = int((folder / RELEASED).read_text())
            with profile.transaction() as cursor:
                room = at_once - count_open_roots(cursor)
            slice_ = [number for number in missing[:8] if number < released][: max(room, 0)]
            if not slice_:
                time.sleep(0.05)
                continue
            _submit(profile, slice_, hyperqueue)
            missing = missing[len(slice_) :]
            time.sleep(0.01)


def _submit(profile: Profile, numbers: Sequence[int], hyperqueue: bool) -> None:
    groups: dict[tuple[int, bool], list[int]] = {}
    for number in numbers:
        elsewhere = hyperqueue and is_for_hyperqueue(number)
        groups.setdefault((kind_of(number)[0], elsewhere), []).append(number)
    for (place, elsewhere), members in groups.items():
        gr.submit_many(
            ROOTS[place],
            n=[gr.Int(kind_of(number)[1]) for number in members],
            labels=[f"root-{number}" for number in members],
            executor="hyperqueue" if elsewhere else None,
            profile=profile,
        )


def run_here_and_now(home: str, number: int) -> None:
    """A script that runs a root by itself; where it is killed, the daemon goes on."""
    place, n = kind_of(number)
    with open_profile(Path(home)) as profile:
        gr.run_get_node(ROOTS[place], n=gr.Int(n), label=f"root-{number}", profile=profile)


def count_open_roots(cursor: Cursor) -> int:
    cursor.execute(
        "SELECT count(*) FROM process WHERE workflow AND parent_id IS NULL"
        " AND state IN ('created', 'waiting', 'running')"
    )
    return int((cursor.fetchone() or (0,))[0])


# -- what is true of them

#: The graph below each root as text: of each process its place, name, end, inputs, outputs, callers, reports.
#: A data node is where it comes from in this tree and what it is, not its id.
_GRAPHS = """
WITH RECURSIVE called AS (
    SELECT node_id, node_id AS root, ARRAY[0] AS place FROM process WHERE parent_id IS NULL AND workflow
    UNION ALL
    SELECT p.node_id, called.root, called.place || p.sequence
    FROM process p JOIN called ON p.parent_id = called.node_id
), made AS (
    SELECT l.target_id AS id, called.root, called.place::text || '.' || l.label AS origin
    FROM link l JOIN called ON called.node_id = l.source_id WHERE l.type = 'create'
), near AS (
    SELECT l.target_id AS node_id, l.type, l.label, l.source_id AS data_id FROM link l
    WHERE l.type IN ('input_calc', 'input_work')
    UNION ALL
    SELECT l.source_id, l.type, l.label, l.target_id FROM link l WHERE l.type IN ('create', 'return')
), ends AS (
    SELECT called.node_id, string_agg(concat_ws(' ', near.type, near.label, coalesce(made.origin, 'given'),
                                                coalesce(encode(d.hash, 'hex'), d.attributes::text)), ', '
                                      ORDER BY near.type, near.label) AS said
    FROM called JOIN near USING (node_id) JOIN node d ON d.id = near.data_id
    LEFT JOIN made ON made.id = d.id AND made.root = called.root
    GROUP BY 1
), callers AS (
    SELECT called.node_id, string_agg(concat_ws(' ', l.type, l.label, l.source_id = p.parent_id), ', ')
           AS said
    FROM called JOIN process p USING (node_id)
    JOIN link l ON l.target_id = called.node_id AND l.type IN ('call_calc', 'call_work') GROUP BY 1
), reports AS (
    SELECT node_id, string_agg(levelname || ' ' || CASE WHEN levelname = 'ERROR' THEN '' ELSE message END,
                               ', ' ORDER BY number) AS said
    FROM log WHERE number IS NOT NULL GROUP BY 1
)
SELECT root_node.label, root_process.label, root_node.id,
       string_agg(concat_ws(' | ', called.place, n.node_type, p.label, p.state, p.exit_status,
                            regexp_replace(p.exit_message, 'process [0-9]+', 'process', 'g'),
                            ends.said, callers.said, reports.said, p.open_children), E'\\n'
                  ORDER BY called.place)
FROM called
JOIN process p ON p.node_id = called.node_id JOIN node n ON n.id = called.node_id
JOIN node root_node ON root_node.id = called.root
JOIN process root_process ON root_process.node_id = called.root
LEFT JOIN ends ON ends.node_id = n.id LEFT JOIN callers ON callers.node_id = n.id
LEFT JOIN reports ON reports.node_id = n.id
GROUP BY 1, 2, 3 ORDER BY 3
"""


def graphs(cursor: Cursor) -> list[tuple[str, str]]:
    """The label of each root, and the graph below it as text: equal for equal runs."""
    cursor.execute(_GRAPHS)
    return [(row[0], row[3]) for row in cursor.fetchall()]


def undisturbed(profile: Profile) -> dict[tuple[int, int], str]:
    """The graphs of one root of each kind and number, run here while nothing breaks."""
    pending: list[PendingCall] = []
    for place, root in enumerate(ROOTS):
        numbers = range(NUMBERS)
        pending += _pending(
            profile,
            root,
            {"n": [gr.Int(number) for number in numbers]},
            [f"{place} {number}" for number in numbers],
            None,
            None,
            None,
            one=False,
        )
    run_here(profile, pending, progress=False)
    with profile.transaction() as cursor:
        found = dict(graphs(cursor))
    return {
        (place, number): found[f"{place} {number}"]
        for place in range(len(ROOTS))
        for number in range(NUMBERS)
    }


def ask(profile: Profile, statement: str, *values: object, patience_s: float = 60.0) -> list[tuple[Any, ...]]:
    """Rows of a query, of a database that may be away for a while."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with profile.transaction() as cursor:
                cursor.execute(statement, values or None)
                return list(cursor.fetchall())
        except DatabaseUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


#: What must find nothing when everything has ended, and how it is called.
_NONE_OF = {
    "processes that have not ended": "SELECT node_id, label, state::text, ready, worker_id, open_children"
    " FROM process WHERE state IN ('created', 'waiting', 'running')",
    "calls that are counted as open": "SELECT node_id, label, open_children FROM process"
    " WHERE open_children <> 0",
    "calls made twice": "SELECT parent_id, sequence FROM process WHERE parent_id IS NOT NULL"
    " GROUP BY 1, 2 HAVING count(*) > 1",
    "gaps in the numbers of calls": "SELECT parent_id FROM process WHERE parent_id IS NOT NULL"
    " GROUP BY 1 HAVING max(sequence) <> count(*)",
    "nodes of processes without a row": "SELECT id, node_type FROM node LEFT JOIN process ON node_id = id"
    " WHERE kind <> 'data' AND node_id IS NULL",
    "data that nothing made or takes": "SELECT id FROM node WHERE kind = 'data'"
    " EXCEPT SELECT source_id FROM link EXCEPT SELECT target_id FROM link",
    "outputs made twice": "SELECT source_id, label FROM link WHERE type IN ('create', 'return')"
    " GROUP BY 1, 2 HAVING count(*) > 1",
    "calls without the link of their caller": "SELECT node_id FROM process WHERE parent_id IS NOT NULL AND"
    " NOT EXISTS (SELECT FROM link WHERE target_id = node_id AND source_id = parent_id"
    " AND type IN ('call_calc', 'call_work'))",
    # Events explain the states.
    "processes that do not begin with being recorded, once": "SELECT process_id,"
    " array_agg(kind::text ORDER BY id) FROM event GROUP BY 1"
    " HAVING count(*) FILTER (WHERE kind IN ('created', 'submitted')) > 1 OR count(*) > 1"
    " AND (array_agg(kind::text ORDER BY id))[1] NOT IN ('created', 'submitted', 'follows', 'started')",
    "processes that did not end once, in their state, last": "SELECT p.node_id, p.label, p.state::text,"
    " array_agg(e.kind::text ORDER BY e.id) FROM process p LEFT JOIN event e ON e.process_id = p.node_id"
    " GROUP BY 1, 2, 3, p.cached_from HAVING count(*) FILTER (WHERE e.kind IN"
    " ('finished', 'excepted', 'killed', 'reused')) <> 1 OR (array_agg(e.kind::text ORDER BY e.id DESC))[1]"
    " <> CASE WHEN p.cached_from IS NOT NULL THEN 'reused' ELSE p.state::text END",
    "processes that were released without having been claimed": "SELECT process_id FROM event GROUP BY 1"
    " HAVING count(*) FILTER (WHERE kind = 'released')"
    " > count(*) FILTER (WHERE kind IN ('claimed', 'submitted', 'created', 'follows'))",
    "events of no process": "SELECT process_id FROM event LEFT JOIN process ON node_id = process_id"
    " WHERE node_id IS NULL",
}


def check(profile: Profile, expected: dict[tuple[int, int], str], count: int) -> None:
    """All roots are there once, with the graph of an undisturbed run, and nothing is half done."""
    ask(profile, "ANALYZE; SELECT 1")
    for what, statement in _NONE_OF.items():
        found = ask(profile, statement)
        assert not found, f"{len(found)} {what}: {found[:5]}"
    with profile.transaction() as cursor:
        found_graphs = graphs(cursor)
    labels = [label for label, _ in found_graphs]
    assert sorted(labels) == sorted(f"root-{number}" for number in range(count)), "not submitted once each"
    wrong = [
        (label, graph)
        for label, graph in found_graphs
        if graph != expected[kind_of(int(label.removeprefix("root-")))]
    ]
    assert not wrong, f"{len(wrong)} of {count} graphs differ; {told_apart(*wrong[0], expected)}"


def told_apart(label: str, graph: str, expected: dict[tuple[int, int], str]) -> str:
    """What is other than it should be in the graph of a root."""
    right = expected[kind_of(int(label.removeprefix("root-")))]
    lines = difflib.unified_diff(
        right.splitlines(), graph.splitlines(), "undisturbed", label, n=0, lineterm=""
    )
    return "\n".join(lines)


def check_files(profile: Profile) -> None:
    """Every content that is named is there and what it should be."""
    with profile.transaction() as cursor:
        cursor.execute("SELECT encode(key, 'hex') FROM blob")
        keys = [row[0] for row in cursor.fetchall()]
        assert keys
        profile.repository.read(keys, profile.index(cursor), verify=True)  # type: ignore[arg-type]


def arguments(function: str, *given: object) -> list[str]:
    """What Python is given to call a function of this module."""
    return ["-c", f"import json, workflow_faults_site as s; s.{function}(*json.loads({json.dumps(given)!r}))"]
