"""A real cluster on one host, to try grange on and to test it: sshd, munge, slurmctld and some slurmd.

README.md, beside this file, says how it is used and what it is made of.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import account
import configuration
import layout
import processes
from layout import Cluster

HERE = Path(__file__).resolve().parent
#: What has to be there, and the packages of Debian and Ubuntu that it comes in.
PROGRAMS = {
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
}
PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
#: Exit statuses: something else failed, programs are missing, network namespaces are refused.
FAILED, PROGRAMS_MISSING, NAMESPACE_REFUSED = 1, 3, 4
#: What a shell of daemons needs at the most to end, after which it is killed.
END_S = 20.0


class Trouble(Exception):
    """What stands in the way, in words for the person who started us."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


# What is asked of the keeper


def keeper_of(cluster: Cluster) -> dict[str, Any] | None:
    """What was noted of the keeper when it started (pid, start, namespace), or None."""
    try:
        found: dict[str, Any] = json.loads(Path(cluster.folder, "keeper.json").read_text())
    except FileNotFoundError:
        return None
    return found


def runs(cluster: Cluster) -> bool:
    keeper = keeper_of(cluster)
    return keeper is not None and processes.lives(keeper["pid"], keeper["start"])


def ask(cluster: Cluster, request: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
    """Send the keeper a request and wait for its answer. Errors: Trouble."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(cluster.own / "control"))
        except OSError as problem:
            raise Trouble(f"The cluster in {cluster.folder} does not run ({problem.strerror}).") from None
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], list(fds))
        with connection.makefile() as answers:
            line = answers.readline()
    if not line:
        raise Trouble(f"The cluster in {cluster.folder} ended while it was asked.")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise Trouble(answer["error"])
    return answer


def run_inside(
    cluster: Cluster, command: str, *, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a shell command inside, as the account, with nothing on its input."""
    with open(os.devnull) as nothing:
        out, told = os.pipe()
        try:
            answer = ask(cluster, {"do": "run", "command": command}, (nothing.fileno(), told, told))
        finally:
            os.close(told)
        with open(out) as file:
            text = file.read()
    return subprocess.CompletedProcess(command, answer["status"], text, "")


# up


def check_programs() -> None:
    missing = {name: package for name, package in PROGRAMS.items() if shutil.which(name, path=PATH) is None}
    if not Path("/usr/lib/openssh/sftp-server").exists():
        missing["/usr/lib/openssh/sftp-server"] = "openssh-sftp-server"
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        raise Trouble(
            f"These programs are missing: {', '.join(missing)}. As root, on Debian or Ubuntu:\n"
            f"    apt-get install --no-install-recommends {packages}\n"
            "(`make services` does so, and leaves none of their services running.)",
            PROGRAMS_MISSING,
        )


def slurm_version() -> tuple[int, ...]:
    text = subprocess.run(
        [shutil.which("slurmd", path=PATH) or "slurmd", "-V"], capture_output=True, text=True, check=True
    ).stdout
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def free_ports(nodes: int) -> int:
    """The first of a row of free ports, slurmctld's and the nodes'; below those of outgoing connections."""
    for first in range(17001, 30000, nodes + 1):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + nodes + 1):
                    stack.enter_context(socket.create_server(("0.0.0.0", port)))  # noqa: S104 - bound for a moment
            except OSError:
                continue
            return first
    raise Trouble(f"There are no {nodes + 1} free ports in a row between 17001 and 30000.")


def open_port(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=4096)
    except OSError as problem:
        raise Trouble(f"127.0.0.1:{port} cannot be listened on: {problem.strerror}") from None


def up(options: argparse.Namespace) -> Cluster:
    """Start a cluster, or one that was stopped again. Errors: Trouble."""
    started = time.monotonic()
    folder = layout.checked_folder(options.folder)
    before = layout.read(folder)
    if before is None and folder.exists() and any(folder.iterdir()):
        raise Trouble(f"{folder} is not empty and not a cluster's; name a new folder.")
    check_programs()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if before is not None and runs(before):
            raise Trouble(f"The cluster in {folder} runs already.")
        who = account.ours()
        folder.chmod(0o755)
        if not account.may_enter(who, folder):
            raise Trouble(
                f"The account {who.pw_name} cannot enter {folder}: a folder above it is closed to others. "
                "Name a folder elsewhere, in /tmp or /var/lib for example."
            )
        cluster = settle(options, folder, before, who)
        lay_out(cluster, who)
        try:
            start_all(cluster, options.timeout, options.end_with)
        except BaseException:
            end(cluster)
            raise
    took = time.monotonic() - started
    restricted = f"\n                  and {folder}/restricted.toml" if cluster.restricted_port else ""
    say(
        f"""\
The cluster runs ({took:.1f} s): {cluster.nodes} nodes of {cluster.cpus} CPUs and {
            cluster.memory_mb
        } MiB, as {cluster.user}{", in a network namespace of its own" if cluster.confined else ""}.

    log in:       ssh -F {cluster.ssh_config} test-cluster
    for grange:   grange computer add --config {folder}/computer.toml{restricted}
    stop it:      {HERE}/down {folder}          (--rm removes the folder, too)
"""
    )
    if not cluster.confined:
        say(
            "It has no network namespace: who reaches this host reaches Slurm's ports (they ask for a key).\n"
            "HyperQueue's server from the PyPI wheel must not run in it: computer.toml says "
            'hyperqueue = "none".\n'
        )
    return cluster


def settle(
    options: argparse.Namespace, folder: Path, before: Cluster | None, who: pwd.struct_passwd
) -> Cluster:
    """What the cluster is to be: as asked, else as it was before, else the defaults."""
    cpus = options.cpus or (before.cpus if before else 4)
    nodes = options.nodes or (before.nodes if before else 4)
    memory = options.memory or (before.memory_mb if before and before.cpus == cpus else 1000 * cpus)
    port = options.port or (before.port if before else 0)
    with open_port(port) as taken, contextlib.ExitStack() as stack:
        port = taken.getsockname()[1]
        restricted_port = 0
        if options.restricted or (before and before.restricted_port):
            restricted_port = before.restricted_port if before else 0
            restricted_port = stack.enter_context(open_port(restricted_port)).getsockname()[1]
        return Cluster(
            folder=str(folder),
            user=who.pw_name,
            home=who.pw_dir,
            port=port,
            restricted_port=restricted_port,
            nodes=nodes,
            cpus=cpus,
            memory_mb=memory,
            confined=not options.no_namespace,
            slurm_port=free_ports(nodes),
        )


def lay_out(cluster: Cluster, who: pwd.struct_passwd) -> None:
    """Folders, keys and configuration; keys that are there stay."""
    folder, own, client = Path(cluster.folder), cluster.own, cluster.client
    client.mkdir(mode=0o700, exist_ok=True)
    theirs = [own, cluster.work_dir]
    theirs += [own / name for name in ("munge", "state", "spool", "log", "ssh", "bin")]
    theirs += [own / "spool" / node for node in cluster.node_names]
    if cluster.restricted_port:
        theirs.append(cluster.allowed_dir)
    for place in theirs:
        place.mkdir(mode=0o700, exist_ok=True)

    def write(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o600)

    munge_key = own / "munge" / "munge.key"
    if not munge_key.exists():
        munge_key.touch(mode=0o600)
        munge_key.write_bytes(os.urandom(1024))
    for restricted, key in ((False, cluster.key_file), (True, cluster.restricted_key)):
        if restricted and not cluster.restricted_port:
            continue
        make_key(key)
        public = key.with_suffix(".pub").read_text()
        kind = "restricted" if restricted else "login"
        line = configuration.authorized_key(cluster, public, restricted=restricted)
        write(own / "ssh" / f"authorized_keys_{kind}", line)
        write(own / "ssh" / f"sshd_config_{kind}", configuration.sshd_config(cluster, restricted=restricted))
        toml = folder / ("restricted.toml" if restricted else "computer.toml")
        toml.write_text(configuration.computer_toml(cluster, restricted=restricted))
    make_key(own / "ssh" / "host_key")
    public = (own / "ssh" / "host_key.pub").read_text()
    write(cluster.known_hosts, configuration.known_hosts(cluster, public))
    write(cluster.ssh_config, configuration.ssh_config(cluster))
    # The account may not be able to read this checkout.
    shutil.copy(HERE / "forced_command.py", own / "bin")
    write(own / "cgroup.conf", configuration.cgroup_conf(slurm_version()))
    (folder / "cluster.json").write_text(json.dumps(cluster.public(), indent=4) + "\n")
    if os.getuid() == 0:
        for place in (own, cluster.work_dir, cluster.allowed_dir):
            give(place, who)


def make_key(file: Path) -> None:
    if not file.exists():
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "grange-test-cluster", "-f", str(file)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def give(place: Path, who: pwd.struct_passwd) -> None:
    """Make the account the owner of a folder and what is in it."""
    for above, folders, files in os.walk(place):
        for path in (above, *(os.path.join(above, name) for name in folders + files)):
            os.chown(path, who.pw_uid, who.pw_gid, follow_symlinks=False)


def start_all(cluster: Cluster, timeout_s: float, end_with: int | None) -> None:
    until = time.monotonic() + timeout_s
    hostname = start_keeper(cluster, end_with)
    conf = cluster.own / "slurm.conf"
    conf.write_text(configuration.slurm_conf(cluster, hostname))
    conf.chmod(0o644)
    start_part(cluster, "munged")
    wait(
        lambda: (cluster.own / "munge" / "socket").is_socket() and still(cluster, "munged"),
        until,
        cluster,
        "munged does not answer",
        "munged",
    )
    for part in ("slurmctld", *cluster.node_names):
        start_part(cluster, part)
    wait(lambda: ready_nodes(cluster) == cluster.nodes, until, cluster, "not all nodes take jobs", "slurm")
    start_sshd(cluster)


def start_keeper(cluster: Cluster, end_with: int | None) -> str:
    """Start the keeper; the name of the host inside. end_with: a process whose end is the cluster's, too."""
    heard, told = os.pipe()
    mode = "confined" if cluster.confined else "open"
    environment = {"PATH": PATH, "LANG": "C.UTF-8"}
    argv = [sys.executable, "-sEB", str(HERE / "keeper.py"), cluster.folder, mode, str(told)]
    if end_with is not None:
        argv.append(str(end_with))
    with open(cluster.logs / "keeper.log", "ab") as output:
        keeper = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[told],
            start_new_session=True,
            env=environment,
            cwd="/",
        )
    os.close(told)
    with open(heard) as file:
        text = file.read()
    report = json.loads(text or "{}")
    process = processes.look_up(keeper.pid)
    if "ready" not in report or process is None:
        keeper.wait()
        if "refused" in report:
            raise Trouble(
                f"A network namespace is refused here ({report['refused']}): a container, or a setting of "
                "the kernel, forbids it.\nStart as root, or with --no-namespace (HyperQueue's server from "
                "the PyPI wheel must not run in the cluster then).",
                NAMESPACE_REFUSED,
            )
        raise Trouble("The cluster's keeper did not start." + tails(cluster, "keeper"))
    note = {"pid": keeper.pid, "start": process.start, "namespace": report["namespace"]}
    Path(cluster.folder, "keeper.json").write_text(json.dumps(note) + "\n")
    # It is not ours to wait for.
    keeper.returncode = 0
    return str(report["hostname"])


def start_part(cluster: Cluster, part: str) -> None:
    own = cluster.own
    (cluster.logs / f"{part}.out").unlink(missing_ok=True)
    if part == "munged":
        munge = own / "munge"
        # --force: a folder that others may write to lies above, /tmp for example.
        argv = [
            "munged",
            "--foreground",
            "--force",
            f"--key-file={munge}/munge.key",
            f"--socket={munge}/socket",
        ]
        argv += [f"--pid-file={munge}/munged.pid", f"--log-file={cluster.logs}/munged.log"]
        argv += [f"--seed-file={munge}/seed", "--num-threads=4"]
    elif part == "slurmctld":
        argv = ["slurmctld", "-D"]
    else:
        argv = ["slurmd", "-D", "-N", part]
    program = shutil.which(argv[0], path=PATH)
    assert program is not None
    ask(cluster, {"do": "spawn", "part": part, "argv": [program, *argv[1:]]})


def start_sshd(cluster: Cluster) -> None:
    """Listen outside the namespace, and hand the sockets to the keeper inside."""
    kinds = ["login", "restricted"]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(open_port(port)) for port in configuration.ports(cluster)]
        files = [str(cluster.own / "ssh" / f"sshd_config_{kind}") for kind in kinds[: len(sockets)]]
        fds = tuple(one.fileno() for one in sockets)
        ask(cluster, {"do": "listen", "configurations": files}, fds)


def still(cluster: Cluster, part: str) -> bool:
    """True. Errors: Trouble where the daemon has ended."""
    if part not in ask(cluster, {"do": "status"})["parts"]:
        raise Trouble(f"{part} has ended." + tails(cluster, part))
    return True


def ready_nodes(cluster: Cluster) -> int:
    """How many nodes take jobs, or have some from before. Errors: Trouble where a daemon has ended."""
    parts = ask(cluster, {"do": "status"})["parts"]
    for part in ("munged", "slurmctld", *cluster.node_names):
        if part not in parts:
            raise Trouble(f"{part} has ended." + tails(cluster, part))
    seen = [line.split() for line in run_inside(cluster, "sinfo -h -o '%T %D'").stdout.splitlines()]
    # A star behind the state: the node has not answered yet.
    return sum(int(line[1]) for line in seen if line[0] in ("idle", "mixed", "allocated", "completing"))


def wait(
    reached: Callable[[], bool],
    until: float,
    cluster: Cluster,
    otherwise: str,
    part: str,
    every_s: float = 0.05,
) -> None:
    while not reached():
        if time.monotonic() > until:
            raise Trouble(f"{otherwise} in time (--timeout)." + tails(cluster, part))
        time.sleep(every_s)


def tails(cluster: Cluster, part: str) -> str:
    """The last lines of a daemon's logs; "slurm" for those of slurmctld and the first node."""
    names = {"slurm": ["slurmctld", "slurmd-node1"]}.get(part, [part, f"slurmd-{part}"])
    text = ""
    for name in [*names, f"{part}.out"]:
        file = cluster.logs / (name if name.endswith(".out") else f"{name}.log")
        with contextlib.suppress(OSError):
            if lines := file.read_text(errors="replace").splitlines()[-8:]:
                text += f"\n{file}:\n    " + "\n    ".join(lines)
    return text


# down


def end(cluster: Cluster) -> None:
    """End the keeper and all that descends from it, or lives in the cluster's namespace."""
    keeper = keeper_of(cluster)
    if keeper is None:
        return
    alive = processes.lives(keeper["pid"], keeper["start"])
    if alive:
        os.kill(keeper["pid"], signal.SIGTERM)
        until = time.monotonic() + END_S
        while processes.lives(keeper["pid"], keeper["start"]) and time.monotonic() < until:
            time.sleep(0.01)
        if processes.lives(keeper["pid"], keeper["start"]):
            os.kill(keeper["pid"], signal.SIGKILL)
    # Where the keeper was killed, what it kept may live on.
    until = time.monotonic() + END_S
    while left := left_over(cluster, keeper):
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if time.monotonic() > until:
            raise Trouble(f"These processes of the cluster do not end: {[process.pid for process in left]}")
        time.sleep(0.02)
    for name in ("keeper.json", "cluster/control"):
        Path(cluster.folder, name).unlink(missing_ok=True)


def left_over(cluster: Cluster, keeper: dict[str, Any]) -> list[processes.Process]:
    """Processes of a cluster whose keeper has gone: in its namespace, or marked; younger than the keeper."""
    if cluster.confined and keeper["namespace"] != processes.namespace("self"):
        found = processes.members(keeper["namespace"])
    else:
        found = processes.marked(cluster.folder)
    return [process for process in found if process.start >= keeper["start"] and process.pid != os.getpid()]


def down(options: argparse.Namespace) -> None:
    folder = layout.checked_folder(options.folder)
    cluster = found(folder)
    with locked(folder):
        if runs(cluster) and not options.rm:
            # Else Slurm, when it starts again, would take them for running until it finds out.
            until_none = "while squeue -h | grep -q .; do sleep 0.1; done"
            run_inside(cluster, f"timeout 5 scancel --user=$USER; timeout 6 sh -c '{until_none}'")
        end(cluster)
        if options.rm:
            shutil.rmtree(folder)


def found(folder: Path) -> Cluster:
    cluster = layout.read(folder)
    if cluster is None:
        raise Trouble(f"{folder} is not the folder of a cluster: it has no cluster.json.")
    return cluster


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One of up and down at a time."""
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# The rest


def status(options: argparse.Namespace) -> int:
    cluster = found(layout.checked_folder(options.folder))
    if not runs(cluster):
        raise Trouble(f"The cluster in {cluster.folder} does not run.")
    told = ask(cluster, {"do": "status"})
    if options.json:
        say(json.dumps({**cluster.public(), **told}) + "\n")
        return 0
    for part in ("munged", "slurmctld", *cluster.node_names):
        pid = told["parts"].get(part)
        say(f"{part:12} {f'process {pid}' if pid else 'does not run'}\n")
    at = ", ".join(f"{cluster.host}:{port}" for port in configuration.ports(cluster))
    listens = f"{at}, connections: {told['sessions']}"
    say(f"{'sshd':12} {listens if told['listening'] else 'does not run'}\n\n")
    say(run_inside(cluster, "sinfo; squeue").stdout)
    return 0


def change(options: argparse.Namespace) -> None:
    """Stop, kill or start one part of a cluster that runs."""
    cluster = found(layout.checked_folder(options.folder))
    part, verb = options.part, options.verb
    parts = ["sshd", "munged", "slurmctld", *cluster.node_names]
    if part not in parts:
        raise Trouble(f"There is no part {part}; there are {', '.join(parts)}.")
    if part == "sshd":
        if verb == "start":
            start_sshd(cluster)
        else:
            ask(cluster, {"do": "silence"})
    elif verb == "start":
        start_part(cluster, part)
    else:
        number = signal.SIGKILL if verb == "kill" else signal.SIGTERM
        ask(cluster, {"do": "signal", "part": part, "signal": number})
        wait(
            lambda: part not in ask(cluster, {"do": "status"})["parts"],
            time.monotonic() + END_S,
            cluster,
            f"{part} has not ended",
            part,
        )


def run(options: argparse.Namespace) -> int:
    """Run a command inside, with our own input and output."""
    cluster = found(layout.checked_folder(options.folder))
    status = int(ask(cluster, {"do": "run", "command": options.command}, (0, 1, 2))["status"])
    return status if status >= 0 else 128 - status


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster.py", description="A real Slurm cluster on one host.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, does: Callable[[argparse.Namespace], object], text: str) -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=text, description=text)
        command.add_argument("folder", help="where all of the cluster lies")
        command.set_defaults(does=does)
        return command

    command = verb("up", up, "Start a cluster, and say how it is used.")
    command.add_argument("--nodes", type=positive, help="nodes (default 4)")
    command.add_argument("--cpus", type=positive, help="CPUs that each node declares (default 4)")
    command.add_argument(
        "--memory", type=positive, metavar="MIB", help="memory of each node (1000 MiB a CPU)"
    )
    command.add_argument("--port", type=positive, help="sshd's port on 127.0.0.1 (default: a free one)")
    command.add_argument("--restricted", action="store_true", help="also a login with a forced command")
    command.add_argument("--no-namespace", action="store_true", help="no network namespace of its own")
    command.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds until it has to run"
    )
    command.add_argument("--end-with", type=positive, metavar="PID", help="end when that process ends")
    command = verb("down", down, "End a cluster, with all that runs in it.")
    command.add_argument("--rm", action="store_true", help="remove the folder, too")
    command = verb("status", status, "Say what runs.")
    command.add_argument("--json", action="store_true", help="for programs")
    for name, text in (
        ("start", "Start a part that does not run: sshd, munged, slurmctld or a node."),
        ("stop", "Stop a part in order. For sshd: the port refuses, and sessions end."),
        ("kill", "Kill a part (SIGKILL)."),
    ):
        verb(name, change, text).add_argument("part")
    command = verb("run", run, "Run a shell command inside, as the cluster's account.")
    command.add_argument("command")
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> int:
    options = arguments().parse_args()
    try:
        result = options.does(options)
    except (Trouble, RuntimeError, OSError) as problem:
        sys.stderr.write(f"{problem}\n")
        return getattr(problem, "status", FAILED)
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
