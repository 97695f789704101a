"""Faults: crashing calls, full and read-only disks, flipped bits, and runs killed at random."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import grange as gr
from grange.core.graph import load
from grange.core.profile import Profile
from grange.repository import BlobCorrupt, PackMalformed


def moody(n: int) -> int:
    """Most calls square; some end in every way there is."""
    if n == 10:
        os._exit(3)
    if n == 20:
        ctypes.string_at(0)
    if n == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    if n == 40:
        sys.exit(4)
    if n == 50:
        raise KeyboardInterrupt
    return n * n


def slow(n: int) -> int:
    if n == 3:
        time.sleep(60)
    if n == 5:
        while True:
            pass
    return n * n


def greedy(n: int) -> int:
    block = bytearray(500_000_000 if n == 3 else 1000)
    time.sleep(0.5 if n == 3 else 0)
    return n + len(block) - len(block)


def test_calls_that_crash_take_no_others_with_them(profile: Profile) -> None:
    campaign = gr.Campaign("crashes", profile)
    campaign.map(moody, n=range(60))
    assert campaign.run(progress=False).failed == 5
    frame = campaign.results().set_index("n")
    well = [n for n in range(60) if n not in (10, 20, 30, 40, 50)]
    assert frame.loc[well, "result"].tolist() == [n * n for n in well]
    assert frame.loc[[10, 20, 30], "exit_status"].tolist() == [170, 170, 170]
    assert "SIGSEGV" in frame.loc[20, "exit_message"]
    assert "SIGKILL" in frame.loc[30, "exit_message"]
    assert frame.loc[40, "exit_message"].startswith("SystemExit")
    assert frame.loc[50, "exit_message"].startswith("KeyboardInterrupt")


def test_limits_of_functions(profile: Profile) -> None:
    campaign = gr.Campaign("limits", profile)
    campaign.map(slow, n=range(10), resources=gr.Resources(walltime_s=0.5))
    campaign.map(greedy, n=range(10), resources=gr.Resources(memory_mb=200))
    assert campaign.run(progress=False).failed == 3
    frame = campaign.results()
    status = frame["exit_status"].tolist()
    assert [place for place, one in enumerate(status) if one] == [3, 5, 13]
    assert (status[3], status[5], status[13]) == (120, 120, 110)
    assert "0.5 s" in frame["exit_message"][3]
    assert "200" in frame["exit_message"][13]


# -- disks -----------------------------------------------------------------------------------------

WORK = """
import json, subprocess, sys
from pathlib import Path
import grange as gr
from grange.core.graph import load
from grange.core.profile import open_profile

home, place, mount = Path(sys.argv[1]), Path(sys.argv[1]) / sys.argv[2], sys.argv[3]

def noise(n: int):
    import os, numpy
    return {"n": n, "noise": numpy.frombuffer(os.urandom(300_000), dtype="u1")}

def remount(options):
    # With its source named, the old options are not repeated: "uid=1000" is nobody in a user namespace.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "remount," + options, "tmpfs", str(place)], check=True)

def campaign():
    made = gr.Campaign("noise", profile)
    made.map(noise, n=range(40))
    more = gr.ShellJob("sh -c 'head -c 300000 /dev/urandom > noise; echo {n}'", retrieve=["noise"])
    made.map(more, n=range(40))
    return made

def check():
    '''Every process that is finished has its outputs and every index row its bytes.'''
    with profile.transaction() as cursor:
        cursor.execute("SELECT node_id FROM process WHERE state = 'finished'")
        finished = [row[0] for row in cursor.fetchall()]
        cursor.execute("SELECT count(*) FROM process WHERE state > 'finished' OR exit_status > 0")
        assert cursor.fetchone() == (0,)
        cursor.execute("SELECT source_id FROM link WHERE type = 'create'")
        makers = [row[0] for row in cursor.fetchall()]
        assert sorted(makers) == sorted(finished * 2), (len(makers), len(finished))
        cursor.execute("SELECT encode(key, 'hex') FROM blob")
        keys = [row[0] for row in cursor.fetchall()]
        profile.repository.read(keys, profile.index(cursor), verify=True)
    return len(finished)

profile = open_profile(home)
try:
    if mount == "read-only" and place.name == "spool":
        remount("ro")  # runners hold it open: later it is too late
    if mount == "full" or place.name == "spool":
        campaign().run(progress=False)
    else:
        def stop_writing(progress):
            if 5 <= progress.done < 40:
                remount("ro")
        campaign().run(progress=stop_writing)
except Exception as error:
    print(type(error).__name__, error)
else:
    sys.exit("it went through")
first = check()
assert first < 80, first
remount("rw,size=100m")
again = campaign()
done = again.run(progress=False)
assert (done.done, done.failed) == (80, 0), done
assert done.reused >= first, (done, first)
assert check() == 80
assert not list((home / "spool").rglob("result-*")), list((home / "spool").rglob("*"))
print("complete")
"""


def namespace() -> list[str] | None:
    """A command that runs another where file systems can be mounted; None where that is not allowed."""
    command = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if shutil.which("unshare") is None:
        return None
    probe = [*command, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return command if subprocess.run(probe, capture_output=True, check=False).returncode == 0 else None


@pytest.mark.parametrize(
    ("place", "mount", "said"),
    [
        ("store", "full", "StoreFull cannot write"),
        ("store", "read-only", "StoreReadOnly cannot write"),
        ("spool", "full", "SpoolUnwritable the spool folder"),
        ("spool", "read-only", "SpoolUnwritable the spool folder"),
    ],
)
def test_a_disk_that_takes_no_more(profile: Profile, place: str, mount: str, said: str) -> None:
    private = namespace()
    if private is None:
        pytest.skip("file systems cannot be mounted here (unshare -m is not allowed)")
    folder = profile.home / place
    folder.mkdir(exist_ok=True, mode=0o700)
    size = "size=100m" if mount == "read-only" else {"store": "size=3m", "spool": "size=500k"}[place]
    script = f'mount -t tmpfs -o mode=700,{size} tmpfs "$4" && exec "$0" -c "$1" "$2" "$3" "$5"'
    done = subprocess.run(
        [*private, "sh", "-c", script, sys.executable, WORK, profile.home, place, folder, mount],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(said), done.stdout
    assert str(folder) in done.stdout
    assert ("No space left" if mount == "full" else "Read-only file system") in done.stdout
    assert done.stdout.endswith("complete\n")


def test_flipped_bits_are_noticed_and_named(profile: Profile) -> None:
    campaign = gr.Campaign("bits", profile)
    campaign.map(gr.ShellJob("seq {n}", outputs={"same": "stdout.txt"}), n=[2000])
    campaign.run(progress=False)
    node_id = campaign.results(nodes=True)["same"][0].id
    with profile.transaction() as cursor:
        (node,) = load(cursor, [node_id], reader=profile.read_files)
        cursor.execute(
            "SELECT name, b.offset, b.stored_size, encode(key, 'hex') FROM blob b"
            " JOIN pack ON pack.id = pack_id WHERE size = (SELECT max(size) FROM blob)"
        )
        name, offset, size, key = cursor.fetchone() or ("", 0, 0, "")
    assert node.read_file("stdout.txt").startswith(b"1\n2\n")
    pack = profile.home / "store" / name
    content = bytearray(pack.read_bytes())
    content[offset + size // 2] ^= 0xFF
    pack.chmod(0o600)
    pack.write_bytes(content)
    with profile.transaction() as cursor:
        (node,) = load(cursor, [node_id], reader=profile.read_files)
    with pytest.raises((BlobCorrupt, PackMalformed)) as caught:
        node.read_file("stdout.txt")
    assert key in str(caught.value)
    assert name in str(caught.value)


# -- killed at random ------------------------------------------------------------------------------

SCRIPT = textwrap.dedent("""
    import sys
    import grange as gr

    def square(n: int, log: str) -> int:
        import os, time
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{n}\\n".encode())
        time.sleep(0.004)
        return n * n

    campaign = gr.Campaign("killed", gr.open(sys.argv[1]))
    campaign.map(square, n=range(200), log=sys.argv[2])
    echo = gr.ShellJob("sh -c 'echo {n} >> {log}; echo {n}; sleep 0.004'")
    campaign.map(echo, n=range(200, 400), log=sys.argv[2])
    print(campaign.run(progress=False).done)
""")


def start(profile: Profile, tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(profile.home), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def packs(profile: Profile) -> set[Path]:
    """The result packs in the spool, while it changes."""
    return {
        Path(folder, name)
        for folder, _, names in os.walk(profile.home / "spool")
        for name in names
        if name.startswith("result-") and name.endswith(".zip")
    }


def test_runs_killed_just_when_results_come_in(profile: Profile, tmp_path: Path) -> None:
    chance = random.Random(7)
    (tmp_path / "script.py").write_text(SCRIPT)
    left_behind = 0
    for _ in range(10):
        running = start(profile, tmp_path)
        before = packs(profile)
        deadline = time.monotonic() + 20
        while not packs(profile) - before and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.choice((0, 0.001, 0.003, 0.01, 0.03)))
        running.kill()
        running.communicate(timeout=20)
        left_behind += bool(packs(profile))
    running = start(profile, tmp_path)
    out, err = running.communicate(timeout=60)
    assert out == "400\n", err
    assert left_behind, "no kill came between flush and record: the test proves nothing"
    assert not packs(profile)
    with profile.transaction() as cursor:
        cursor.execute("SELECT state::text, exit_status, count(*) FROM process GROUP BY 1, 2")
        assert cursor.fetchall() == [("finished", 0, 400)]
        cursor.execute(
            """
            SELECT p.ordinal, p.attempt, array_agg(l.label ORDER BY l.label),
                   max(coalesce(n.attributes->>'value', '')) FROM process p
            JOIN link l ON l.source_id = p.node_id AND l.type = 'create' JOIN node n ON n.id = l.target_id
            GROUP BY 1, 2 ORDER BY 1
            """
        )
        rows: list[Any] = cursor.fetchall()
        assert [row[0] for row in rows] == list(range(400))
        assert all(row[2] == ["result"] for row in rows[:200])
        assert all(row[2] == ["retrieved", "stdout"] for row in rows[200:])
        assert [int(row[3]) for row in rows] == [n * n if n < 200 else n for n in range(400)]
        cursor.execute(
            "SELECT count(*) FROM node n WHERE n.kind = 'data' AND NOT EXISTS"
            " (SELECT FROM link WHERE source_id = n.id OR target_id = n.id)"
        )
        assert cursor.fetchone() == (0,), "outputs or inputs that belong to nobody"
        cursor.execute("SELECT encode(key, 'hex') FROM blob")
        keys = [row[0] for row in cursor.fetchall()]
        profile.repository.read(keys, profile.index(cursor), verify=True)
    computed = [int(line) for line in (tmp_path / "log").read_text().split()]
    attempts = {row[0]: row[1] for row in rows}
    assert set(computed) == set(range(400))
    assert all(computed.count(n) <= attempts[n] for n in range(400))
