"""Campaigns whose nodes deliver into a bucket: what several tests make, and what they look at."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from object_store import ObjectStore

import grange as gr
from grange.cli.entry import run
from grange.core.profile import Profile
from grange.farm.computer import Computer
from grange.repository.s3_settings import S3Settings
from grange.repository.s3_store import S3Store

#: The computer, which is this machine.
LABEL = "node"
#: Enough to go straight into the store. Bytes.
SOME = 300_000
#: Writes noise(n), and leaves a mark each time that it runs; arguments: n and the folder of the marks.
WRITE = f"""
import random, sys
open(sys.argv[2] + "/" + sys.argv[1], "a").write("x")
sys.stdout.buffer.write(random.Random(int(sys.argv[1])).randbytes({SOME}))
"""


def profile_text(database_url: str, settings: S3Settings) -> str:
    lines = [f"{key} = {value!r}" for key, value in settings.to_table().items()]
    return "\n".join([f'database = "{database_url}"', "[store]", *lines, ""])


def computer(there: Path, **changes: Any) -> Computer:
    made = Computer(
        label=LABEL, transport="local", scheduler="direct", work_dir=str(there), slots=2,
        python=sys.executable, memory_mb_per_node=4000, delivery="store",
    )  # fmt: skip
    return replace(made, **changes)


def rows_of(profile: Profile, statement: str) -> list[tuple[Any, ...]]:
    with profile.transaction() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def large_ones(store: S3Store) -> set[str]:
    """The objects of some size."""
    return {info.name for info in store.list() if info.size >= SOME}


def blob_places(profile: Profile) -> dict[str, str]:
    """Key → object, of blobs of some size."""
    return dict(
        rows_of(
            profile,
            "SELECT encode(blob.key, 'hex'), pack.name FROM blob JOIN pack ON pack.id = pack_id "
            f"WHERE size >= {SOME}",
        )
    )


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(SOME)


def large(count: int, profile: Profile, label: str = "large") -> gr.Campaign:
    """Each call leaves a large file that tells its number."""
    tally = profile.home.parent / "tally"
    tally.mkdir(exist_ok=True)
    command = [os.path.realpath(sys.executable), "-c", WRITE, "{n}", str(tally)]
    job = gr.ShellJob(command, outputs={"out": "stdout.txt"}, label="write")
    campaign = gr.Campaign(label, profile)
    campaign.map(job, n=range(count))
    return campaign


def right(campaign: gr.Campaign, count: int) -> None:
    frame = campaign.results(nodes=True)
    assert [node.content for node in frame["out"]] == [noise(n) for n in range(count)]


def prune(profile: Profile) -> None:
    """Remove all that nobody needs, and at once."""
    words = ["repository", "prune", "--grace", "0", "--unknown-too", "--yes"]
    assert run(["--home", str(profile.home), *words]) == 0


def no_secrets(profile: Profile, object_store: ObjectStore, *folders: Path) -> None:
    """Nothing of what was signed is in a file of ours, there or here, or in the record."""
    _, secret = object_store.keys()
    words = [b"X-Amz-Signature", b"X-Amz-Credential", secret.encode()]
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".py":
                content = path.read_bytes()
                assert not any(word in content for word in words), path
    tables = rows_of(
        profile, "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = current_schema()"
    )
    assert tables
    for (table,) in tables:
        for word in words:
            found = rows_of(
                profile,
                f"SELECT count(*) FROM {table} AS one WHERE one::text LIKE '%{word.decode()}%'",
            )
            assert found == [(0,)], table
