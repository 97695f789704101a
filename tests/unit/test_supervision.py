"""What a supervisor does next: every decision, and that no history leads it astray."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from grange.core import supervision
from grange.core.supervision import Ask, Command, Kill, Part, Start, Supervision

ONE, TWO = Part("worker", 1), Part("worker", 2)
QUEUE = Part("dispatcher", 17)


def act(
    now: Supervision,
    now_s: float,
    *,
    workers: int = 0,
    queues: tuple[int, ...] = (),
    stopping: bool = False,
    may_start: bool = True,
) -> list[Command]:
    """Decide, and remember it as done."""
    commands = supervision.decide(
        now, now_s, workers=workers, queues=queues, stopping=stopping, grace_s=10.0, may_start=may_start
    )
    supervision.note(now, now_s, commands)
    return commands


def test_what_is_wanted_is_started_once() -> None:
    now = Supervision()
    assert act(now, 0.0, workers=2, queues=(17,)) == [Start(ONE), Start(TWO), Start(QUEUE)]
    assert act(now, 0.1, workers=2, queues=(17,)) == []


def test_without_a_database_nothing_is_started_and_nothing_is_ended() -> None:
    now = Supervision()
    act(now, 0.0, workers=1)
    assert act(now, 1.0, workers=2, may_start=False) == []
    assert act(now, 2.0, workers=2) == [Start(TWO)]


def test_the_last_workers_go_first_and_are_killed_only_after_their_time() -> None:
    now = Supervision()
    act(now, 0.0, workers=2)
    assert act(now, 1.0, workers=1) == [Ask(TWO)]
    assert act(now, 10.9, workers=1) == []
    assert act(now, 11.0, workers=1) == [Kill(TWO)]
    assert act(now, 12.0, workers=1) == []
    supervision.note_end(now, 12.0, TWO, well=False)
    assert act(now, 12.0, workers=2) == [Start(TWO)]  # its end was wanted: no failure


def test_a_dispatcher_is_not_ended_because_its_queue_is_empty() -> None:
    now = Supervision()
    act(now, 0.0, queues=(17,))
    assert act(now, 1.0, queues=()) == []
    assert act(now, 2.0, stopping=True) == [Ask(QUEUE)]


def test_stopping_asks_everybody_and_starts_nobody() -> None:
    now = Supervision()
    act(now, 0.0, workers=1, queues=(17,))
    assert act(now, 1.0, workers=5, queues=(17, 18), stopping=True) == [Ask(ONE), Ask(QUEUE)]


def test_what_ran_for_a_while_is_started_again_at_once() -> None:
    now = Supervision()
    at_s = 0.0
    for _ in range(20):
        assert act(now, at_s, workers=1) == [Start(ONE)]
        at_s += supervision.STEADY_S
        assert supervision.note_end(now, at_s, ONE, well=False) == 0.0


def test_what_fails_at_its_start_is_started_ever_more_rarely() -> None:
    now = Supervision()
    at_s, waits = 0.0, []
    for _ in range(8):
        assert act(now, at_s, workers=1) == [Start(ONE)]
        wait_s = supervision.note_end(now, at_s + 0.1, ONE, well=False)
        waits.append(wait_s)
        if wait_s:
            assert act(now, at_s + wait_s, workers=1) == []
        at_s += 0.1 + wait_s
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    act(now, at_s, workers=1)
    supervision.note_end(now, at_s + supervision.STEADY_S, ONE, well=False)
    act(now, at_s + supervision.STEADY_S, workers=1)
    assert supervision.note_end(now, at_s + supervision.STEADY_S, ONE, well=False) == 0.0  # forgotten


def test_what_ends_well_and_at_once_does_not_spin() -> None:
    now = Supervision()
    for at_s in (0.0, 1.0, 2.0):
        assert act(now, at_s, queues=(17,)) == [Start(QUEUE)]
        assert supervision.note_end(now, at_s, QUEUE, well=True) == supervision.FIRST_PAUSE_S
        assert act(now, at_s + 0.5, queues=(17,)) == []


class AnyHistory(RuleBasedStateMachine):
    """Wishes, ends and time in any order: what runs approaches what is wanted, and nothing is done twice."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Supervision()
        self.at_s = 0.0
        self.workers = 0
        self.queues: set[int] = set()
        self.done: dict[Part, set[type[Command]]] = {}

    @rule(workers=st.integers(0, 3), queues=st.sets(st.integers(1, 3)), seconds=st.floats(0, 20))
    def look(self, workers: int, queues: set[int], seconds: float) -> None:
        self.at_s += seconds
        self.workers, self.queues = workers, queues
        commands = act(self.now, self.at_s, workers=workers, queues=tuple(queues))
        for command in commands:
            if isinstance(command, Start):
                assert command.part not in self.done
                self.done[command.part] = set()
            kinds = self.done[command.part]
            assert type(command) not in kinds
            kinds.add(type(command))

    @rule(data=st.data(), seconds=st.floats(0, 20), well=st.booleans())
    def end(self, data: st.DataObject, seconds: float, well: bool) -> None:
        if self.now.running:
            self.at_s += seconds
            part = data.draw(st.sampled_from(sorted(self.now.running, key=str)))
            wait_s = supervision.note_end(self.now, self.at_s, part, well=well)
            assert 0.0 <= wait_s <= supervision.LONGEST_PAUSE_S
            del self.done[part]

    @invariant()
    def after_the_longest_pause_all_that_is_wanted_runs(self) -> None:
        later = supervision.decide(
            self.now,
            self.at_s + supervision.LONGEST_PAUSE_S,
            workers=self.workers,
            queues=self.queues,
            stopping=False,
            grace_s=1e9,
        )
        started = {command.part for command in later if isinstance(command, Start)}
        wanted = {Part("worker", number) for number in range(1, self.workers + 1)}
        wanted |= {Part("dispatcher", number) for number in self.queues}
        assert wanted <= started | set(self.now.running)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
