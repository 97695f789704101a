"""What passes our machine when nodes put their results into the store by themselves?

    measure.py [--quick]

The same campaign twice, on a test cluster by SSH, Slurm and HyperQueue, with a bucket of a real S3 server:
results and input files by SSH, and by signed URL. Counted are the contents that our machine sends and gets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bucket import Bucket, open_bucket  # noqa: E402 - it lies beside this folder
from testbed import Testbed, machine, open_testbed  # noqa: E402
from way_in import way_in  # noqa: E402 - among the tests, which testbed has put on the path

import grange as gr  # noqa: E402
from grange.core.delivery import delivery_of  # noqa: E402
from grange.farm.cluster_executor import ClusterExecutor  # noqa: E402
from grange.farm.counting_transport import CountingTransport  # noqa: E402
from grange.repository import Repository  # noqa: E402
from grange.repository.s3_store import S3Store  # noqa: E402
from grange.repository.source import Source  # noqa: E402
from grange.repository.store import Contents, Range  # noqa: E402

MIB = 1 << 20
Counts = dict[str, float]


class Counted(S3Store):
    """A bucket, and what of contents this process sends there and gets from there."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket.settings)
        self.out = self.into = 0
        self._turn = threading.Lock()

    def put_if_absent(self, name: str, source: Source) -> bool:
        self._sent(source.stat().st_size if isinstance(source, Path) else len(source))  # type: ignore[arg-type]
        return super().put_if_absent(name, source)

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> Contents:
        found = super().get_ranges(name, ranges)
        with self._turn:
            self.into += sum(map(len, found))
        return found

    def _sent(self, size: int) -> None:
        with self._turn:
            self.out += size


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="less, within half a minute")
    quick = options.parse_args().quick
    count, size = (16, 2 * MIB) if quick else (64, 8 * MIB)
    found: dict[str, Counts] = {}
    with open_bucket() as bucket, open_testbed() as bed, way_in(bed.cluster, bucket.settings.endpoint):
        about = machine()
        bed.allocate()
        for kind in ("ssh", "store"):
            found[kind] = campaign(bed, bucket, kind, count, size)
            words = ", ".join(f"{value:,.2f} {what}" for what, value in found[kind].items())
            print(f"{kind:6} {words}", flush=True)
    answer = {
        "question": "delivery",
        "ratio": round(found["ssh"]["MB through us"] / found["store"]["MB through us"], 1),
        "aim": 100.0,
        "figures": {
            **found,
            "calculations": count,
            "MB in of each, the same": size / 1e6,
            "MB out of each": size / 1e6,
            "slots": bed.slots,
            "machine": about,
        },
    }
    if not quick:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "latest.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))


def campaign(bed: Testbed, bucket: Bucket, kind: Literal["ssh", "store"], count: int, size: int) -> Counts:
    """Calculations that read one large file and write another, each."""
    store = Counted(bucket)
    profile = bed.profile
    profile._repository = Repository(store)
    made = gr.Campaign(kind, profile)
    job = gr.ShellJob(
        ["sh", "-c", f"cksum < {{file}}; head -c {size} /dev/urandom > out; echo {{n}}"],
        outputs={"out": "out"},
    )
    made.map(job, file=[gr.SingleFile(os.urandom(size), "in.dat")] * count, n=range(count))
    made.submit()
    stored = store.out
    counting = CountingTransport(bed.site.remote.transport)
    began = time.monotonic()
    with ClusterExecutor(
        profile.spool / f"bench-{kind}",
        replace(bed.site.computer, delivery=kind),
        counting,
        fetch=lambda keys: _read(profile, keys),
        delivery=delivery_of(profile, made.id),
    ) as executor:
        done = made.run(progress=False, executor=executor)
    took_s = time.monotonic() - began
    if (done.done, done.failed) != (count, 0):
        raise SystemExit(f"{done} of {count} calls: {made.failures()['exit_message'].tolist()[:1]}")
    traffic = counting.traffic
    ssh = traffic.bytes_in + traffic.bytes_out
    return {
        "MB by SSH": round(ssh / 1e6, 2),
        "MB to the store": round((store.out - stored) / 1e6, 2),
        "MB from the store": round(store.into / 1e6, 2),
        "MB through us": round((ssh + store.out - stored + store.into) / 1e6, 2),
        "s": round(took_s, 1),
    }


def _read(profile: Any, keys: Iterable[Any]) -> dict[Any, bytes]:
    wanted = list(keys)
    return dict(zip(wanted, profile.read_files(wanted), strict=True))


if __name__ == "__main__":
    main()
