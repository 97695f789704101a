"""The supervisor of a daemon: keeps workers and dispatchers running, and does no work itself.

It decides by core/supervision.py, looks each second and when somebody notifies, and knows its own processes
only: those of other hosts and homes have supervisors of their own. Nothing of what workflows or calculations
do can end it.

There are no pid files: it holds an advisory lock on its row, which PostgreSQL drops when it dies. Where the
database goes away, what runs is left running and nothing is started; when it is back the lock is taken again.
Where the supervisor itself is killed, its processes see their lifelines cut and end in order; one that does
not is ended by the next supervisor.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import suppress
from typing import Literal

from grange.core import daemon_rows, profile_lock, supervision
from grange.core.blame import Blame
from grange.core.daemon_child import DATABASE_AWAY, how_ended, is_process_of, is_supervisor
from grange.core.daemon_children import DISPATCH, WORK, Children
from grange.core.daemon_log import begin_logging, bound_logs
from grange.core.database import Connection
from grange.core.errors import DaemonException, DatabaseUnavailable
from grange.core.process_control import pause
from grange.core.profile import Profile
from grange.core.queues import find_waiting
from grange.core.stopping import Stopping
from grange.core.supervision import Ask, Kill, Part, Start, Supervision
from grange.core.wakeups import Wakeups
from grange.core.worker import DISPATCHER, free_dead

#: Seconds between two looks at what is wanted, when nobody notifies, and when many do; between looks for
#: dead ones.
LOOK_S, SHORTEST_S = 1.0, 0.04
SWEEP_S = 5.0
#: Seconds in which PostgreSQL notices that a session on this machine has ended.
LAST_S = 2.0
#: Seconds between looks for queues that have something to run, however often somebody notifies.
QUEUES_S = 0.2
#: Campaigns are begun while there are fewer dispatchers; those of queues do not wait.
MOST_DISPATCHERS = 16
#: Seconds between two tries to reach a database that is away.
AGAIN_S = 1.0

End = Literal["stop", "restart"]


class Supervisor:
    """The daemon's own process. foreground: logs go to standard error, else to files below HOME/daemon."""

    def __init__(self, profile: Profile, workers: int, stopping: Stopping, *, foreground: bool) -> None:
        self._profile = profile
        self._stopping = stopping
        self._foreground = foreground
        self._workers = workers
        self._home = os.path.realpath(profile.home)
        self._home_status = os.stat(self._home)
        self._logger = begin_logging()
        self._wakeups = Wakeups(profile)
        self._deaths = _Deaths()
        self._session: Connection | None = None
        self._id = 0
        self._known = Supervision()
        self._children = Children(profile.home, foreground=foreground)
        self._blame = Blame()
        #: Processes that workers have died of too often, and why they are to be paused.
        self._to_pause: dict[int, str] = {}
        #: The groups that have, or need, a dispatcher, and how they are called.
        self._queues: dict[int, str] = {}
        self._end: End | None = None
        self._away = False
        self._locked = False
        self._looked_s = self._sweep_at_s = self._queues_at_s = self._away_until_s = 0.0
        self._orphans: dict[int, float] = {}

    def begin(self) -> None:
        """Become the daemon of this home, and start what is wanted.

        Errors: DaemonException where there is one already.
        """
        self._id = self._registered()
        self._session = self._profile.connection
        self._logger.info("daemon %d of %s begins as process %d", self._id, self._profile.home, os.getpid())
        self._look()
        self._act()

    def _registered(self) -> int:
        """The id of this daemon; one that was killed is given the time that PostgreSQL needs to notice."""
        until_s = time.monotonic() + LAST_S
        while True:
            try:
                return daemon_rows.register(self._profile.connection, self._home, self._workers)
            except DaemonException:
                with self._profile.transaction() as cursor:
                    alive = daemon_rows.find_alive(cursor, socket.gethostname(), self._home)
                if time.monotonic() >= until_s or any(is_supervisor(row.pid) for row in alive):
                    raise
            time.sleep(SHORTEST_S)

    def run(self) -> End:
        """Supervise until somebody wants it to end, then until all its processes have ended."""
        while self._end is None or self._known.running:
            self._wait()
            self._reap()
            if self._end != "stop" and self._stopping():
                self._begin_end("stop")
            if self._is_home_there():
                self._look()
            self._act()
        if self._is_home_there():
            with suppress(DatabaseUnavailable):
                self._note_stopped()
        self._logger.info("daemon %d has ended", self._id)
        return self._end or "stop"

    def _note_stopped(self) -> None:
        """Note that nobody of this daemon lives any more, once PostgreSQL has noticed, too."""
        until_s = time.monotonic() + LAST_S
        while time.monotonic() < until_s:
            free_dead(self._profile)
            with self._profile.transaction() as cursor:
                if not daemon_rows.find_parts(cursor, [self._id]):
                    break
            time.sleep(SHORTEST_S)
        with self._profile.transaction() as cursor:
            row = daemon_rows.note_stopped(cursor, self._id)
        if row is not None:  # what was wished for last
            self._workers = row.workers_wanted
            self._end = "stop" if row.stop_asked_at else self._end

    @property
    def workers(self) -> int:
        """How many workers are wanted."""
        return self._workers

    # ------------------------------------------------------------ looking

    def _is_home_there(self) -> bool:
        """Whether the folder of the profile is still what it was; where it is not, the daemon ends.

        Somebody has removed it: an embedded database must not be made anew in its place.
        """
        try:
            if os.path.samestat(os.stat(self._home), self._home_status):
                return True
        except FileNotFoundError:
            pass
        except OSError:
            return True  # a file server that is away for a while
        if self._end != "stop":
            self._logger.error("%s is gone", self._home)
            self._begin_end("stop")
        return False

    def _look(self) -> None:
        """See what people want and what there is to run; without a database everything stays as it is."""
        now_s = self._looked_s = time.monotonic()
        if now_s < self._away_until_s:
            return
        try:
            self._hold()
            self._read_wishes()
            self._pause_deadly()
            self._end_unstoppable(now_s)
            if now_s >= self._sweep_at_s:
                self._sweep_at_s = now_s + SWEEP_S
                self._sweep(now_s)
            if now_s >= self._queues_at_s and self._end is None:
                self._queues_at_s = now_s + QUEUES_S
                self._read_queues()
        except DatabaseUnavailable as error:
            if not self._away:
                self._logger.warning("the database is away: nothing is started until it is back: %s", error)
            self._away = True
            self._away_until_s = time.monotonic() + AGAIN_S
            return
        if self._away:
            self._logger.info("the database is back")
        self._away = False

    def _hold(self) -> None:
        """Hold the lock of this daemon on whatever connection there is now."""
        connection = self._profile.connection
        if connection is self._session:
            return
        try:
            daemon_rows.register_again(connection, self._id, self._home)
        except DaemonException as error:
            self._logger.error("%s", error)
            self._begin_end("stop")
        self._session = connection

    def _read_wishes(self) -> None:
        with self._profile.transaction() as cursor:
            row = daemon_rows.find(cursor, self._id)
            locked = profile_lock.find(cursor)
        if row is None:
            if self._end != "stop":
                self._logger.error("the row of this daemon is gone from the database")
                self._begin_end("stop")
            return
        if row.workers_wanted != self._workers:
            self._logger.info("%d workers are wanted, not %d", row.workers_wanted, self._workers)
            self._workers = row.workers_wanted
        if (locked is not None) != self._locked:
            self._locked = locked is not None
            said = f"the profile is {locked}: nobody works" if locked else "the profile is unlocked"
            self._logger.info("%s", said)
        if row.stop_asked_at and self._end != "stop":
            self._begin_end("stop")
        elif row.restart_asked_at and self._end is None:
            self._begin_end("restart")

    def _read_queues(self) -> None:
        """Add what waits for a dispatcher and has none. It is taken out when its dispatcher ends."""
        if self._locked:
            running = {part.number for part in self._known.running if part.role == "dispatcher"}
            self._queues = {id_: label for id_, label in self._queues.items() if id_ in running}
            return
        with self._profile.transaction() as cursor:
            waiting = find_waiting(cursor, str(self._profile.home), self._queues)
        for queue in waiting:
            if not queue.is_campaign or len(self._queues) < MOST_DISPATCHERS:
                self._queues[queue.id] = queue.label

    def _sweep(self, now_s: float) -> None:
        """Note what daemons have died, and end processes that a dead one of this home has left here."""
        if not self._foreground:
            bound_logs(self._profile.home)
        with self._profile.transaction() as cursor:
            for row in daemon_rows.note_dead(cursor):
                self._logger.warning("daemon %d, process %d on %s, was killed", row.id, row.pid, row.host)
            orphans = daemon_rows.find_orphans(cursor, socket.gethostname(), self._home)
        free_dead(self._profile)
        for part, process_id in self._children.kept(now_s):
            self._logger.warning(
                "%s has been at the code of process %d for a minute, and all its others wait: what takes "
                "long is better submitted as a calculation",
                self._what(part),
                process_id,
            )
        self._orphans = {one.id: self._orphans.get(one.id, now_s) for one in orphans}
        if orphans:
            self._sweep_at_s = now_s + LOOK_S
        for one in orphans:
            module = DISPATCH if one.role == DISPATCHER else WORK
            late = now_s - self._orphans[one.id] >= self._grace_s
            if late and is_process_of(one.pid, module, one.daemon_id):
                self._logger.warning(
                    "%s %d of daemon %d does not end: killed", one.role, one.pid, one.daemon_id
                )
                with suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)

    def _pause_deadly(self) -> None:
        for process_id, reason in list(self._to_pause.items()):
            pause(self._profile, [process_id], reason)
            del self._to_pause[process_id]
            self._logger.error("process %d is paused: %s", process_id, reason)

    def _end_unstoppable(self, now_s: float) -> None:
        """End workers that are at the code of a process which is to be killed and never comes to a call."""
        kept = self._children.at_for(now_s, self._grace_s)
        if not kept:
            return
        with self._profile.transaction() as cursor:
            cursor.execute(
                "SELECT node_id FROM process WHERE node_id = ANY(%s) AND to_kill", (list(kept.values()),)
            )
            unwanted = {row[0] for row in cursor.fetchall()}
        for part, process_id in kept.items():
            if process_id in unwanted:
                self._logger.warning(
                    "%s does not come back from the code of process %d, which is to be killed: it is killed",
                    self._what(part),
                    process_id,
                )
                self._children.kill(part)

    @property
    def _grace_s(self) -> float:
        return self._profile.config.daemon.grace_s

    def _begin_end(self, end: End) -> None:
        self._end = end
        self._logger.info("asked to %s: processes bring to an end what they are at", end)
        tell_systemd("STOPPING=1" if end == "stop" else "RELOADING=1")

    # ------------------------------------------------------------ acting

    def _act(self) -> None:
        now_s = time.monotonic()
        commands = supervision.decide(
            self._known,
            now_s,
            workers=self._workers,
            queues=self._queues,
            stopping=self._end is not None,
            grace_s=self._grace_s,
            may_start=not self._away,
        )
        for command in commands:
            supervision.note(self._known, now_s, [command])
            match command:
                case Start(part):
                    self._start(part)
                case Ask(part):
                    self._children.ask(part)
                case Kill(part):
                    self._logger.warning("%s does not end by itself: killed", self._what(part))
                    self._children.kill(part)

    def _what(self, part: Part) -> str:
        """A part as people know it."""
        if part.role == "worker":
            return f"worker {part.number}"
        return f"dispatcher of {self._queues.get(part.number, part.number)}"

    def _start(self, part: Part) -> None:
        try:
            child = self._children.start(part, self._id)
        except OSError as error:  # no process, no memory, no space for logs: for now
            wait_s = supervision.note_end(self._known, time.monotonic(), part, well=False)
            self._logger.error("%s cannot start: %s; again in %.0f s", self._what(part), error, wait_s)
            return
        name = self._children.log_name(part)
        self._logger.info("%s runs as process %d (%s)", self._what(part), child.pid, name)

    def _reap(self) -> None:
        """See who has ended, and of what."""
        for ended in self._children.reap():
            part, what, status = ended.part, self._what(ended.part), ended.status
            self._sweep_at_s = 0.0
            if part.role == "dispatcher":
                self._queues.pop(part.number, None)
                self._queues_at_s = 0.0
            asked = self._known.running[part].asked_s is not None
            well = status in (0, DATABASE_AWAY)
            wait_s = supervision.note_end(self._known, time.monotonic(), part, well=well)
            said = f"{what}, process {ended.pid}, {how_ended(status)}"
            if status == 0 or asked:
                self._logger.info("%s", said)
                continue
            again = f"again in {wait_s:.0f} s" if wait_s else "started again"
            at = f" at the code of process {ended.at}" if ended.at else ""
            self._logger.warning("%s%s: %s", said, at, again)
            if ended.at and not well and self._blame.is_too_much(ended.at, status):
                self._to_pause[ended.at] = (
                    f"workers die of its code again and again; the last one {how_ended(status)}: "
                    f"`grange daemon logs` may say why, `grange process play {ended.at}` tries once more"
                )

    # ------------------------------------------------------------ waiting

    def _wait(self) -> None:
        """Until something is to be seen to: a signal, an end of a process, news, or a second has gone by."""
        until_s = time.monotonic() + LOOK_S
        while (left_s := until_s - time.monotonic()) > 0:
            poll = select.poll()
            signals = {self._deaths.descriptor}
            if self._end != "stop":
                signals |= set(self._stopping.descriptors)
            for descriptor in signals:
                poll.register(descriptor, select.POLLIN)
            if not self._away:
                with suppress(DatabaseUnavailable):
                    if self._is_news(self._wakeups.wait(0.0)):
                        # Many who notify at once are answered by one look.
                        time.sleep(max(0.0, self._looked_s + SHORTEST_S - time.monotonic()))
                        return
                    poll.register(self._profile.connection.fileno(), select.POLLIN)
            ready = poll.poll(left_s * 1000)
            if any(descriptor in signals for descriptor, _ in ready):
                self._deaths.clear()
                return
            if ready:
                time.sleep(SHORTEST_S / 2)  # most of the news is none to us

    def _is_news(self, news: set[str] | None) -> bool:
        """Whether that changes what is to be done: wishes, or a queue that has no dispatcher yet."""
        if news is None or "control" in news:
            return True
        queues = {one.removeprefix("queue:") for one in news if one.startswith("queue:")}
        return not queues <= {str(id_) for id_ in self._queues}


class _Deaths:
    """Tells of processes that have ended, by a descriptor that is ready to be read from."""

    def __init__(self) -> None:
        self.descriptor, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, self._handle)

    def _handle(self, *_: object) -> None:
        with suppress(BlockingIOError):
            os.write(self._writing, b"!")

    def clear(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self.descriptor, 4096):
                pass


def tell_systemd(state: str) -> None:
    """Say how it stands where systemd wants to know: units of Type=notify."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place[:1] in ("/", "@"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.connect("\0" + place[1:] if place[0] == "@" else place)
            to.send(state.encode())
