"""One sbatch per program, on an idle cluster; prints the seconds from the first to the end of the last.

    sbatch_each.py COUNT PROGRAM [ARGUMENT ...]

Runs inside the test cluster; "{index}" in arguments is the number of the job. Nothing is recorded or kept.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time


def main() -> None:
    count, argv = int(sys.argv[1]), sys.argv[2:]
    began = time.perf_counter()
    for number in range(count):
        line = shlex.join(word.replace("{index}", str(number)) for word in argv)
        subprocess.run(["sbatch", "-Q", "-o", "/dev/null", "--wrap", f"exec {line}"], check=True)
    while subprocess.run(["squeue", "-h"], check=True, capture_output=True).stdout.strip():
        time.sleep(0.05)
    print(time.perf_counter() - began)


main()
