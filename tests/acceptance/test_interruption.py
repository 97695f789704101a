"""The whole system, killed and started again: nothing is lost, nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grange.core.postgres import stop_server
from grange.core.profile import Profile, open_profile

CALLS = 300

SCRIPT = textwrap.dedent("""
    import sys, time
    import grange as gr

    def slow(x: int, log: str) -> int:
        import time
        with open(log, "a") as file:
            file.write(f"{x}\\n")
        time.sleep(0.02)
        return x * x

    def main():
        profile = gr.open()
        campaign = gr.Campaign("slow", profile)
        campaign.map(slow, x=range(int(sys.argv[1])), log=sys.argv[2])
        echo = gr.ShellJob("sh -c 'echo {x} >> {log}; sleep 0.02; echo {x}'")
        campaign.map(echo, x=range(100), log=sys.argv[2] + ".sh")
        done = campaign.run(progress=True)
        print(done.done, done.failed, done.reused)

    main()
""")


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the script and a home that does not exist yet."""
    folder = tmp_path_factory.mktemp("k")
    (folder / "script.py").write_text(SCRIPT)
    yield folder
    stop_server(folder / "home" / "postgres", force=True)


def start(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "script.py", str(CALLS), str(place / "log")],
        cwd=place,
        env={**os.environ, "GRANGE_HOME": str(place / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Under nohup, SIGHUP is ignored by all that come after, and would end nobody here.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def finished(place: Path) -> int:
    """How many processes have ended, as somebody else sees it."""
    if not (place / "home" / "postgres" / "data" / "PG_VERSION").exists():
        return 0
    with open_profile(place / "home") as profile, profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM process WHERE finished_at IS NOT NULL")
        return int((cursor.fetchone() or (0,))[0])


def wait_for(place: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while finished(place) < count:
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.05)


def check_everything(place: Path) -> None:
    """Every call is recorded once, with its output; every file can be read and is what it should be."""
    with open_profile(place / "home") as profile, profile.transaction() as cursor:
        cursor.execute("SELECT state::text, exit_status, count(*) FROM process GROUP BY 1, 2")
        assert cursor.fetchall() == [("finished", 0, CALLS + 100)]
        cursor.execute(
            "SELECT count(*), count(DISTINCT source_id) FROM link WHERE type = 'create' AND label = 'result'"
        )
        assert cursor.fetchone() == (CALLS, CALLS)
        cursor.execute(
            """
            SELECT i.attributes->>'value', o.attributes->>'value' FROM process p
            JOIN link li ON li.target_id = p.node_id AND li.type = 'input_calc' AND li.label = 'x'
            JOIN node i ON i.id = li.source_id
            JOIN link lo ON lo.source_id = p.node_id AND lo.type = 'create'
                 AND lo.label IN ('result', 'stdout')
            JOIN node o ON o.id = lo.target_id
            """
        )
        rows = cursor.fetchall()
        assert len(rows) == CALLS + 100
        assert all(output.strip() in (str(int(x) ** 2), x) for x, output in rows)
        check_files(profile, cursor)


def check_files(profile: Profile, cursor: object) -> None:
    cursor.execute("SELECT encode(key, 'hex') FROM blob")  # type: ignore[attr-defined]
    keys = [row[0] for row in cursor.fetchall()]  # type: ignore[attr-defined]
    assert len(keys) > 100
    profile.repository.read(keys, profile.index(cursor), verify=True)  # type: ignore[arg-type]


def no_runner_of(place: Path) -> None:
    """Nothing of the dead run is left: neither runners nor what they ran."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if not dead and (str(place / "log") in words or ("runner.py" in words and str(place) in words)):
                left.append(words)
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(left)


@pytest.mark.parametrize(
    "ways", [[signal.SIGKILL] * 3, [signal.SIGHUP], [signal.SIGTERM]], ids=["kill", "hangup", "term"]
)
def test_a_killed_run_goes_on_where_it_was(place: Path, ways: list[signal.Signals]) -> None:
    for number, way in enumerate(ways):
        running = start(place)
        wait_for(place, 40 * (number + 1))
        os.kill(running.pid, way)
        running.communicate(timeout=20)
        no_runner_of(place)
    before = finished(place)
    assert 40 * len(ways) <= before < CALLS + 100
    running = start(place)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    done, failed, reused = map(int, out.split())
    assert (done, failed) == (CALLS + 100, 0)
    assert reused >= before
    check_everything(place)
    # what was running when the run was killed is computed again, and nothing else is
    computed = (place / "log").read_text().split()
    assert len(computed) <= CALLS + 2 * (os.cpu_count() or 1) * len(ways)


def test_ctrl_c_saves_what_is_done_and_says_so(place: Path) -> None:
    running = start(place)
    wait_for(place, 40)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode != 0
    assert "run it again to go on" in err
    no_runner_of(place)
    computed = len((place / "log").read_text().split()) + (
        len((place / "log.sh").read_text().split()) if (place / "log.sh").exists() else 0
    )
    assert finished(place) >= computed - (os.cpu_count() or 1), "what had been computed was not recorded"
    out, err = start(place).communicate(timeout=120)
    assert out.split()[:2] == [str(CALLS + 100), "0"], err
    check_everything(place)


def test_a_complete_run_computes_nothing_again(place: Path) -> None:
    first, err = start(place).communicate(timeout=120)
    assert first.split() == [str(CALLS + 100), "0", "0"], err
    log = (place / "log").read_text()
    began = time.monotonic()
    again, err = start(place).communicate(timeout=120)
    assert again.split() == [str(CALLS + 100), "0", str(CALLS + 100)], err
    assert time.monotonic() - began < 10
    assert (place / "log").read_text() == log


def test_a_database_killed_under_the_run_loses_nothing(place: Path) -> None:
    running = start(place)
    wait_for(place, 40)
    postmaster = int((place / "home" / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    _, err = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "database" in err
    out, err = start(place).communicate(timeout=120)
    assert out.split()[:2] == [str(CALLS + 100), "0"], err
    check_everything(place)
