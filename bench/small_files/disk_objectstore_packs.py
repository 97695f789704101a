"""disk-objectstore, as its documentation does many files at once: straight into packs, and back in bulk.

    disk_objectstore_packs.py FOLDER FILES

Run by an interpreter that has it; prints one line of JSON.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from pathlib import Path

from disk_objectstore import Container  # type: ignore[import-not-found]

SIZE = 4096


def main(folder: Path, files: int) -> None:
    noise = random.Random(files).randbytes(SIZE)
    given = [number.to_bytes(8, "little") + noise[8:] for number in range(files)]
    before_mb = peak_mb()
    container = Container(folder / "container")
    container.init_container(clear=False)
    began = time.perf_counter()
    keys = container.add_objects_to_pack(given)
    written = time.perf_counter()
    found = container.get_objects_content(keys)
    read = time.perf_counter()
    assert len(found) == files
    container.close()
    own = resource.getrusage(resource.RUSAGE_SELF)
    told = {
        "write_per_s": files / (written - began),
        "read_per_s": files / (read - written),
        "cpu_s": own.ru_utime + own.ru_stime,
        "memory_added_mb": peak_mb() - before_mb,
    }
    print(json.dumps(told))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
