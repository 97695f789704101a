"""What do SSH, Slurm, HyperQueue and the record cost a calculation on a cluster?

    measure.py [--quick] [--calculations N] [--repeat R]

Everything runs in turn on one test cluster that this brings up; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from testbed import CORES, LABEL, Testbed, machine, open_testbed  # noqa: E402 – it lies beside this folder

import grange as gr  # noqa: E402

#: Of (b), of (a), and the share of what the cores allow.
AIM, AIM_SBATCH, AIM_SHARE = 1.5, 20.0, 0.6
SHORT_S = 0.05


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer calculations, within 45 s")
    options.add_argument("--calculations", type=int, default=10_000)
    options.add_argument("--repeat", type=int, default=3)
    chosen = options.parse_args()
    quick, repeat = chosen.quick, 2 if chosen.quick else chosen.repeat
    count = 4000 if quick else chosen.calculations
    sleeps, loops = (2000, 120) if quick else (count, count // 5)
    raw = count // 2 if quick else count
    jobs = 64 if quick else 320
    programs = {
        "true": "/bin/true {index}",
        "sleep": f"/bin/sleep {SHORT_S} {{index}}e-12",
        "busy": f"/usr/bin/perl -e '$i++ while $i<$ARGV[0]' {calibrated()} {{index}}",
    }
    found: dict[str, list[float]] = {}

    def note(name: str, calculations: int, seconds: float) -> None:
        found.setdefault(name, []).append(calculations / seconds)
        print(
            f"{name:28} {calculations:6,} in {seconds:7.2f} s  {calculations / seconds:8,.1f}/s", flush=True
        )

    with open_testbed() as bed:
        about = machine()
        grange = Grange(bed)
        note("sbatch each, true", jobs, sbatch_each(bed, jobs, programs["true"]))
        if not quick:
            note("sbatch each, sleep", jobs, sbatch_each(bed, jobs, programs["sleep"]))
            note("sbatch each, busy", jobs, sbatch_each(bed, jobs, programs["busy"]))
        bed.allocate()
        for number in range(repeat):
            note("grange, true", count, grange.run(count, programs["true"]))
            note("HyperQueue each, true", raw, raw_hyperqueue(bed, raw, programs["true"]))
            if number == 0 or not quick:
                note("grange, sleep", sleeps, grange.run(sleeps, programs["sleep"]))
            if number == 0:
                note("grange, busy", loops, grange.run(loops, programs["busy"]))
                # No run is shorter than that of one core after the other: what the cores allow, measured.
                note("xargs, busy", loops, xargs(loops, programs["busy"]))
                if not quick:
                    note("HyperQueue each, sleep", sleeps, raw_hyperqueue(bed, sleeps, programs["sleep"]))
                    note("HyperQueue each, busy", loops, raw_hyperqueue(bed, loops, programs["busy"]))
        if not quick:
            bed.cluster.cancel_all()
            note("sbatch each, true", jobs, sbatch_each(bed, jobs, programs["true"]))
    rate = {name: statistics.median(rates) for name, rates in found.items()}
    shares = {
        "sleep, of all slots": rate["grange, sleep"] * SHORT_S / bed.slots,
        "busy, of both cores": rate["grange, busy"] * SHORT_S / CORES,
        "busy, of xargs": rate["grange, busy"] / rate["xargs, busy"],
    }
    figures = {
        "calculations": {"true": count, "sleep": sleeps, "busy": loops, "sbatch each": jobs},
        "slots": bed.slots,
        "rates_per_s": {name: round(each, 1) for name, each in rate.items()},
        "spread": {name: [round(min(each), 1), round(max(each), 1)] for name, each in found.items()},
        "of_sbatch_each": round(rate["grange, true"] / rate["sbatch each, true"], 1),
        "of_sbatch_each_aim": AIM_SBATCH,
        "share_of_cores": {name: round(share, 3) for name, share in shares.items()},
        "share_of_cores_aim": AIM_SHARE,
        "engine_cpu_ms_per_calculation": round(1e3 * grange.cpu_s / grange.calculations, 3),
        "machine": about,
    }
    answer = {
        "question": "slurm_farm",
        "ratio": round(rate["grange, true"] / rate["HyperQueue each, true"], 3),
        "aim": AIM,
        "figures": figures,
    }
    if not quick:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "latest.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))


class Grange:
    """Runs campaigns on the testbed, each with arguments that no other had, so that all are computed."""

    def __init__(self, bed: Testbed) -> None:
        self._bed = bed
        self.calculations = 0
        self.cpu_s = 0.0

    def run(self, count: int, program: str) -> float:
        """Seconds from run() to the last result recorded and its files fetched."""
        campaign = gr.Campaign(f"bench-{self.calculations}", self._bed.profile)
        first = self.calculations
        campaign.map(gr.ShellJob(program), index=range(first, first + count))
        cpu_s = time.process_time()
        began = time.perf_counter()
        done = campaign.run(progress=False, executor=LABEL)
        seconds = time.perf_counter() - began
        self.cpu_s += time.process_time() - cpu_s
        self.calculations += count
        if (done.done, done.failed, done.reused) != (count, 0, 0):
            raise SystemExit(f"{done} of {count} calls")
        frame = campaign.results()
        assert len(frame) == count
        assert set(frame["exit_status"]) == {0}
        return seconds


def sbatch_each(bed: Testbed, count: int, program: str) -> float:
    return float(bed.inside(HERE / "sbatch_each.py", str(count), *shlex.split(program)))


def raw_hyperqueue(bed: Testbed, count: int, program: str) -> float:
    server = f"{bed.site.remote.work_dir}/server"
    said = bed.inside(HERE / "raw_hyperqueue.py", bed.agent, server, str(count), *shlex.split(program))
    return float(said.split()[-1])


def xargs(count: int, program: str) -> float:
    """Seconds for xargs to run a program on all cores."""
    argv = ["xargs", "-n1", f"-P{CORES}", *shlex.split(program.removesuffix(" {index}"))]
    names = "\n".join(map(str, range(count)))
    began = time.perf_counter()
    subprocess.run(argv, input=names, text=True, check=True)
    return time.perf_counter() - began


def calibrated() -> int:
    """How many rounds of the loop take 50 ms of CPU here, when nobody else asks for the core."""

    def cpu_s(rounds: int) -> float:
        script = "$i++ while $i<$ARGV[0]; print join '+', times"
        ran = subprocess.run(
            ["/usr/bin/perl", "-e", script, str(rounds)], capture_output=True, text=True, check=True
        )
        return sum(map(float, ran.stdout.split("+")))

    rounds = 20_000_000
    return round(SHORT_S * rounds / min(cpu_s(rounds) for _ in range(3)))


if __name__ == "__main__":
    main()
