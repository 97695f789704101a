"""Workers, a dispatcher, sweeps, repair and people at the same rows, on real locks: nobody waits for ever.

Parents and children are with different workers, so that flushes of two of them cross: each ends children of
workflows that the other writes. Beside them results come in, trees are paused, played and killed.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import workflow_faults_site as faults
import workflow_site as site

import grange as gr
from grange.core import process_control
from grange.core.dispatcher_thread import DispatcherThreads
from grange.core.hub import Hub
from grange.core.profile import Profile
from grange.core.queues import Queues
from grange.core.repair import find_faults, repair
from grange.core.worker import free_dead

PATIENCE_S = 90.0


def test_workers_dispatchers_and_people_at_once_never_deadlock(profile: Profile) -> None:
    roots = gr.submit_many(site.tree, depth=[2] * 20, width=5, profile=profile).ids
    roots += gr.submit_many(faults.branch, n=list(range(5)) * 4, profile=profile).ids
    over = threading.Event()
    calm = threading.Event()
    failed: list[BaseException] = []

    def in_a_thread(work: Callable[[Profile], object]) -> threading.Thread:
        def run() -> None:
            try:
                with site.another(profile) as own:
                    while not over.is_set():
                        work(own)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def be_worker(own: Profile) -> None:
        """A few steps, then it dies, or gives everything back: a child is seldom with whom its parent is."""
        with site.another(own) as mortal:
            hub = Hub(mortal, live=24)
            for _ in range(20):
                hub.step(0.02)
            if luck.random() < 0.5:
                hub.let_go()

    luck = random.Random(8)
    chance = random.Random(7)

    def be_person(own: Profile) -> None:
        if calm.is_set():
            process_control.play(own, roots, tree=True)
            time.sleep(0.1)
            return
        some = chance.sample(roots, 6)
        process_control.pause(own, some[:3], tree=True)
        if chance.random() < 0.15:
            process_control.kill(own, some[5:])
        process_control.play(own, some[:3], tree=True)
        time.sleep(0.05)

    def see_to_it(own: Profile) -> None:
        free_dead(own)
        repair(own)
        time.sleep(0.02)

    threads = [in_a_thread(work) for work in (be_worker, be_worker, be_person, see_to_it)]
    with DispatcherThreads(profile) as dispatchers:
        dispatchers.serve([Queues(profile).id_of(None)])
        began = time.monotonic()
        while not site.ended(profile, roots) and not failed:
            if time.monotonic() > began + 3.0:
                calm.set()
            assert time.monotonic() < began + PATIENCE_S, "they do not end"
            dispatchers.raise_errors()
            time.sleep(0.05)
    over.set()
    for thread in threads:
        thread.join()
    assert failed == []
    with profile.transaction() as cursor:
        assert find_faults(cursor) == []
        cursor.execute("SELECT count(*) FROM process WHERE state IN ('created', 'waiting', 'running')")
        assert cursor.fetchone() == (0,)
        cursor.execute("SELECT count(*) FROM process WHERE open_children <> 0")
        assert cursor.fetchone() == (0,)
        # Who has lost a deadlock does it again, so that nothing else would tell of it.
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert cursor.fetchone() == (0,)
        cursor.execute("SELECT count(*) FROM worker WHERE ended_at IS NOT NULL")
        assert cursor.fetchone() > (2,)
        cursor.execute("SELECT state::text FROM process WHERE node_id = ANY (%s)", (roots,))
        states = [row[0] for row in cursor.fetchall()]
        assert set(states) == {"finished", "killed"}
        assert states.count("finished") > len(roots) // 3
