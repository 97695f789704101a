"""Scrubbing with quarantine beside writers, pruning and repacking: nothing is lost but what was damaged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import grange as gr
from grange.core.profile import Profile, open_profile
from grange.core.scrub import scrub
from grange.repository import BlobQuarantined, key_of
from grange.repository.quarantine import notes

WRITER = """
import itertools, random, sys
import grange as gr
from grange.core.profile import open_profile
with open_profile(sys.argv[1]) as profile:
    for number in itertools.count(int(sys.argv[2])):
        files = {str(i): random.Random(100 * number + i).randbytes(700) for i in range(10)}
        profile.store(gr.Folder(files))
        print(number, flush=True)
"""
UPKEEP = """
while true; do
    grange repository repack --dead-share 0.01 --yes >/dev/null 2>&1 && echo repacked
    grange repository prune --grace 0 --yes >/dev/null 2>&1 && echo pruned
done
"""


def content(number: int, i: int) -> bytes:
    return random.Random(100 * number + i).randbytes(700)


def damage_one(profile: Profile, chance: random.Random) -> None:
    """Flip a bit of some blob in some pack."""
    with profile.transaction() as cursor:
        cursor.execute(
            'SELECT pack.name, "offset", stored_size FROM blob JOIN pack ON pack.id = pack_id'
            " WHERE stored_size > 100 ORDER BY random() LIMIT 1"
        )
        name, offset, size = cursor.fetchone() or ("", 0, 0)
    path = profile.home / "store" / name
    try:
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(offset + chance.randrange(size))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    except FileNotFoundError:  # repacked and pruned meanwhile
        return


@pytest.mark.slow
def test_nothing_is_lost_but_what_was_damaged(profile: Profile) -> None:
    chance = random.Random(11)
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "GRANGE_HOME": str(profile.home),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(profile.home), str(start)], stdout=subprocess.PIPE, text=True
        )
        for start in (0, 1_000_000)
    ]
    keeper = subprocess.Popen(
        ["bash", "-c", UPKEEP],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    damages = taken_out = 0
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline()
        until_s = time.monotonic() + 15
        while time.monotonic() < until_s:
            with open_profile(profile.home) as other:
                damage_one(other, chance)
                damages += 1
                taken_out += len(scrub(other, quarantine=True).taken_out)
                # some of what was damaged is stored again
                for note in list(notes(other.repository.store))[:2]:
                    known = {
                        key_of(content(number, i)): (number, i) for number in range(50) for i in range(10)
                    }
                    for key in note.reasons:
                        if key in known:
                            other.store(gr.SingleFile(content(*known[key]), "again"))
    finally:
        for writer in writers:
            writer.kill()
        os.killpg(keeper.pid, 9)
        kept_up = keeper.communicate()[0].split()
    numbers = [int(line) for writer in writers for line in writer.communicate()[0].split()]
    assert len(numbers) > 20
    assert taken_out > 3
    assert {"repacked", "pruned"} <= set(kept_up)
    with open_profile(profile.home) as other:
        last = scrub(other, restart=True, quarantine=True)
        hurt = {key for note in notes(other.repository.store) for key in note.reasons}
        assert set(last.unknown) <= hurt
        lost = 0
        for number in numbers:
            for i in range(10):
                wanted = content(number, i)
                try:
                    assert other.read_files([key_of(wanted)]) == [wanted]
                except BlobQuarantined:
                    lost += 1
                    assert key_of(wanted) in hurt
        # a damage hurts one blob, unless it hit a pack that was just being written anew
        assert lost <= len(hurt) <= damages
