"""The lookout: looks at what running tasks write, for their monitors.

Standard library only, Python 3.9 or newer: it travels with runner.py, which lies beside it.

A monitor is a regular expression, or a Python function, over the tail of a file. Either may take for ever, or
die; so they have a process of their own, started when the first look is due, with the packages that functions
need. The runner sends it a JSON line for each look and reads one back, and waits for nothing:

    {"monitor": number, "path": file, "from": bytes that were seen}
    {"size": bytes seen, "said": why the task is to be stopped or null, "problem": what is wrong}

A monitor that cannot do its work ends nothing: it is not asked again in this chunk, and why is kept with the
files of each task that it was meant for.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
from typing import Any, Callable, Dict, List, Optional, Tuple

Json = Dict[str, Any]

#: How soon it is looked again for an answer that is awaited. Seconds.
ANSWER_S = 0.05
#: At one look at most so many bytes of a file are read; what was written before them is left out.
MOST_BYTES = 8 << 20
#: How the process is started: its folder is on the path for its own imports alone.
START = (
    "import sys; place = sys.argv.pop(1); sys.path[:] = [place] + [entry for entry in sys.path if entry]; "
    "import runner, lookout; sys.path.remove(place); sys.path.append(place + '/lib'); "
    "del sys.modules['lookout']; sys.exit(lookout.main(sys.modules.pop('runner'), sys.argv[1]))"
)


class Lookout:
    """Asks for a verdict on the running task whenever one of its monitors is due; used by the runner.

    folder: of the chunk. monitors: of chunk.json. spare: is told the process that is no part of a task, and
    the one whose place it takes (0: none).
    """

    def __init__(self, folder: str, monitors: List[Json], spare: Callable[[int, int], None]) -> None:
        self._folder = folder
        self._monitors = monitors
        self._spare = spare
        self._process: Any = None
        self._pid = 0
        self._heard = b""
        self._asked: Optional[Tuple[int, float]] = None
        self._place = ""
        self._due: Dict[int, float] = {}
        self._seen: Dict[int, int] = {}
        self._broken: Dict[int, str] = {}
        #: What is wrong with monitors of the task.
        self.problems: List[str] = []

    def begin(self, numbers: List[int], place: str, now: float) -> None:
        """A task has been started. place: its directory."""
        self._place = place
        self._seen = {}
        self.problems = [self._broken[number] for number in numbers if number in self._broken]
        self._due = {
            number: now + float(self._monitors[number]["every_s"])
            for number in numbers
            if number not in self._broken
        }

    def wake_at(self, now: float) -> float:
        """When there is something to do again."""
        if self._asked is not None:
            return now + ANSWER_S
        return min(self._due.values(), default=now + 3600.0)

    def look(self, now: float) -> Optional[Tuple[Json, str]]:
        """A monitor that wants the task to be stopped, and why; None, mostly."""
        if self._asked is None:
            number = min(self._due, key=lambda number: self._due[number], default=-1)
            if number < 0 or self._due[number] > now:
                return None
            self._ask(number, now)
        return self._answer(now)

    def end(self) -> None:
        """The task has ended."""
        if self._asked is not None:
            self.close()  # its answer would be for nobody, and may never come
        self._due = {}

    def close(self) -> None:
        """End the process."""
        self._asked = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None

    def _start(self) -> None:
        import subprocess

        self._process = subprocess.Popen(
            [sys.executable, "-c", START, os.path.dirname(os.path.abspath(__file__)), self._folder],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        os.set_blocking(self._process.stdout.fileno(), False)
        self._spare(self._process.pid, self._pid)
        self._pid = self._process.pid
        self._heard = b""

    def _ask(self, number: int, now: float) -> None:
        self._asked = (number, now)
        path = os.path.join(self._place, self._monitors[number]["file"])
        question = {"monitor": number, "path": path, "from": self._seen.get(number, 0)}
        try:
            if self._process is None:
                self._start()
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
        except OSError:
            pass  # one that has died is noticed by the end of its output

    def _answer(self, now: float) -> Optional[Tuple[Json, str]]:
        assert self._asked is not None
        number, asked_at = self._asked
        monitor = self._monitors[number]
        try:
            data = b"" if self._process is None else os.read(self._process.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            if now > asked_at + float(monitor["timeout_s"]):
                self._give_up(number, "it did not answer within %g s" % monitor["timeout_s"])
            return None
        if not data:
            self._give_up(number, "its process has ended")
            return None
        self._heard += data
        line, end, rest = self._heard.partition(b"\n")
        if not end:
            return None
        self._heard = rest
        self._asked = None
        answer = json.loads(line)
        self._due[number] = now + float(monitor["every_s"])
        self._seen[number] = answer["size"]
        if answer["problem"]:
            self._break(number, answer["problem"])
            return None
        return None if answer["said"] is None else (monitor, answer["said"])

    def _give_up(self, number: int, why: str) -> None:
        self.close()
        self._break(number, why)

    def _break(self, number: int, why: str) -> None:
        self._due.pop(number, None)
        self._broken[number] = "%s: %s" % (title(self._monitors[number]), why)
        self.problems.append(self._broken[number])


def title(monitor: Json) -> str:
    """What a monitor is called in messages."""
    what = monitor["function"]["name"] if monitor.get("function") else repr(monitor["pattern"])
    return "the monitor %s of %s" % (what, monitor["file"])


# ----------------------------------------------------------------------------------------- in its own process


def main(runner: Any, folder: str) -> int:
    """Answer questions until there are no more. runner: the module runner.py."""
    runner.die_with_parent(signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    questions, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what functions print is no answer
    pack = runner.ZipReader(os.path.join(folder, "chunk.zip"))
    monitors = json.loads(pack.read("chunk.json"))["monitors"]
    judges: Dict[int, Any] = {}
    for line in questions:
        question = json.loads(line)
        number = question["monitor"]
        answer = {"size": question["from"], "said": None, "problem": ""}
        try:
            if number not in judges:
                judges[number] = judge_of(runner, monitors[number], pack)
            found = tail_of(question["path"], question["from"], int(monitors[number]["tail_bytes"]))
            if found is not None:
                answer["size"], text = found
                answer["said"] = judges[number](text)
        except BaseException as problem:  # whatever somebody's function raises, SystemExit too
            answer["problem"] = "%s: %s" % (type(problem).__name__, problem)
        os.write(answers, json.dumps(answer).encode("ascii", "backslashreplace") + b"\n")
    return 0


def judge_of(runner: Any, monitor: Json, pack: Any) -> Callable[[str], Optional[str]]:
    """What makes a verdict of text: why the task is to be stopped, or None."""
    message = monitor["message"]
    if monitor.get("function"):
        function = runner.load_function(monitor["function"], pack)

        def by_function(text: str) -> Optional[str]:
            said = function(text)
            if said is None or said is False or said == "":
                return None
            if said is not True and not isinstance(said, str):
                raise TypeError("it returned %s: expected None or why to stop" % type(said).__name__)
            return said if isinstance(said, str) else message or "%s wants it" % title(monitor)

        return by_function
    pattern = re.compile(monitor["pattern"], re.MULTILINE)

    def by_pattern(text: str) -> Optional[str]:
        found = pattern.search(text)
        return None if found is None else message or line_of(text, found.start(), monitor["file"])

    return by_pattern


def line_of(text: str, place: int, file: str) -> str:
    """The line that a place lies in."""
    end = text.find("\n", place)
    line = text[text.rfind("\n", 0, place) + 1 : len(text) if end < 0 else end]
    return "%s: %s" % (file, line.strip()[:500])


def tail_of(path: str, seen: int, least: int) -> Optional[Tuple[int, str]]:
    """How long a file is, and what was written to it since it was seen, at least its last bytes; None where
    there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        size = status.st_size
        begin = max(0, min(seen, size - least), size - max(least, MOST_BYTES))
        content = b""
        while begin + len(content) < size:
            piece = os.pread(fd, size - begin - len(content), begin + len(content))
            if not piece:
                break
            content += piece
        return size, content.decode("utf-8", "replace")
    finally:
        os.close(fd)
