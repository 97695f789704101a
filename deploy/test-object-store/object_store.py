"""A real object store on one host, to try grange on and to test it: Ceph's monitor, OSD and S3 gateway.

README.md, beside this file, says how it is used and what it is made of.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import certificates
import configuration
import daemons
import layout
from layout import ObjectStore

HERE = Path(__file__).resolve().parent
#: What has to be there, and the packages of Debian and Ubuntu that it comes in.
PROGRAMS = {
    "radosgw": "radosgw",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "radosgw-admin": "ceph-common",
    "ceph-authtool": "ceph-common",
    "monmaptool": "ceph-base",
    "osdmaptool": "ceph-base",
    "openssl": "openssl",
}
#: The account that the packages bring along, which the daemons of root run as.
ACCOUNT = "ceph"
#: Exit statuses: something else failed, programs are missing, it runs already.
FAILED, PROGRAMS_MISSING, RUNS_ALREADY = 1, 3, 4
#: Ports that are taken: five of ours and some for the OSD, in a row, below those of outgoing connections.
PORTS = 24
USER = "grange"


class Trouble(Exception):
    """What stands in the way, in words for the person who started us."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


# up


def up(options: argparse.Namespace) -> None:
    """Start an object store, or one that was stopped again. Errors: Trouble."""
    started = time.monotonic()
    folder = layout.checked_folder(options.folder)
    check_programs()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        store = layout.read(folder)
        if store is None and any(path.name != ".lock" for path in folder.iterdir()):
            raise Trouble(f"{folder} is not empty and not an object store's; name a new folder.")
        if store is not None and daemons.running(store):
            raise Trouble(f"The object store in {folder} runs already.", RUNS_ALREADY)
        folder.chmod(0o755)
        new = store is None
        if store is None:
            store = settle(options, folder)
        until = time.monotonic() + options.timeout
        try:
            if new:
                lay_out(store)
            daemons.start(store, "mon")
            if new:
                run(store, "ceph-osd", "--id", "0", "--mkfs")
            daemons.start(store, "osd")
            start_gateway(store, "gateway", until)
            if not store.credentials.exists():
                write_credentials(store.credentials, "default", make_user(store, USER))
        except BaseException:
            end(store)
            raise
    if options.while_locked:
        watch(store, Path(options.while_locked).absolute(), remove=options.rm)
    said = store.public()
    say(
        f"""\
The object store runs ({time.monotonic() - started:.1f} s), as {store.user}: Ceph's S3 gateway.

    endpoint:     {said["endpoint"]}
    and by TLS:   {said["https_endpoint"]}, signed by {store.ca_file}
    credentials:  {store.credentials}
    stop it:      {HERE}/down {folder}          (--rm removes the folder, too)
"""
    )


def check_programs() -> None:
    missing = {
        name: package for name, package in PROGRAMS.items() if not shutil.which(name, path=daemons.PATH)
    }
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        raise Trouble(
            f"These programs are missing: {', '.join(missing)}. As root, on Debian or Ubuntu:\n"
            f"    apt-get install --no-install-recommends {packages}\n"
            "(`make services` does so, and leaves none of their services running.)",
            PROGRAMS_MISSING,
        )


def settle(options: argparse.Namespace, folder: Path) -> ObjectStore:
    """What a new one is to be."""
    user = pwd.getpwuid(os.getuid()).pw_name if os.getuid() else ACCOUNT
    first = free_ports()
    return ObjectStore(
        folder=str(folder),
        user=user,
        fsid=str(uuid.uuid4()),
        mon_port=first,
        port=options.port or first + 1,
        https_port=first + 2,
        spare_port=first + 3,
        spare_https_port=first + 4,
        osd_ports=(first + 5, first + PORTS - 1),
        size=options.size << 30,
    )


def free_ports() -> int:
    """The first of a row of free ports. By chance, so that two who look at the same time do not meet."""
    for _ in range(200):
        first = random.SystemRandom().randrange(17001, 32000 - PORTS)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + PORTS):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise Trouble(f"There are no {PORTS} free ports in a row between 17001 and 32000.")


def lay_out(store: ObjectStore) -> None:
    """Folders, keys, certificates, configuration, and a monitor that knows all of them."""
    server, tls = store.server, store.server / "tls"
    store.client.mkdir(mode=0o700, exist_ok=True)
    for place in (server, tls, store.logs, server / "run", server / "mon", server / "osd"):
        place.mkdir(mode=0o700, exist_ok=True)
    os.umask(0o077)
    store.conf.write_text(configuration.ceph_conf(store))
    certificates.make(tls / "server.pem", tls / "server.key", store.ca_file)
    give(store)
    create = ["--create-keyring"]
    for name, rights in configuration.KEYS.items():
        caps = [word for about, right in rights.items() for word in ("--cap", about, right)]
        run(store, "ceph-authtool", str(store.keyring), *create, "--gen-key", "--name", name, *caps)
        create = []
    monmap, osdmap = str(server / "monmap"), str(server / "osdmap")
    address = f"[v2:{store.host}:{store.mon_port}]"
    run(store, "monmaptool", "--create", "--addv", "a", address, "--fsid", store.fsid, monmap)
    # With an OSD in the first map none has to be made known to the monitor afterwards.
    run(store, "osdmaptool", "--createsimple", "1", osdmap)
    mkfs = ["--mkfs", "--monmap", monmap, "--osdmap", osdmap, "--keyring", str(store.keyring)]
    run(store, "ceph-mon", "--id", "a", *mkfs)
    Path(store.folder, "object-store.json").write_text(json.dumps(store.public(), indent=4) + "\n")


def give(store: ObjectStore) -> None:
    """Make the account the owner of what is its own, and see that it can get there."""
    if os.getuid() != 0:
        return
    who = pwd.getpwnam(store.user)
    for above, folders, files in os.walk(store.server):
        for path in (above, *(os.path.join(above, name) for name in folders + files)):
            os.chown(path, who.pw_uid, who.pw_gid, follow_symlinks=False)
    try:
        run(store, "ls", str(store.conf))
    except Trouble:
        raise Trouble(
            f"The account {store.user} cannot enter {store.folder}: a folder above it is closed to others. "
            "Name a folder elsewhere, in /tmp or /var/lib for example."
        ) from None


def run(store: ObjectStore, program: str, *arguments: str) -> str:
    """What a program of Ceph prints, run as the account. Errors: Trouble."""
    done = subprocess.run(
        [program, *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        env={**daemons.environment(), "CEPH_CONF": str(store.conf)},
        timeout=60,
        **daemons.account(store),
    )
    if done.returncode:
        raise Trouble(f"{program} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return str(done.stdout)


def start_gateway(store: ObjectStore, part: str, until: float) -> None:
    """Start a gateway, and wait until it answers. Errors: Trouble."""
    daemons.start(store, part)
    while not answers(store.host, store.ports_of(part)[0]):
        for needed in ("mon", "osd", part):
            if needed not in daemons.running(store):
                raise Trouble(f"{needed} has ended." + tail(store, needed))
        if time.monotonic() > until:
            raise Trouble(f"The {part} does not answer in time (--timeout)." + tail(store, part))
        time.sleep(0.02)


def answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def tail(store: ObjectStore, part: str) -> str:
    """The last lines that a daemon said."""
    names = {"mon": "mon.a", "osd": "osd.0", "gateway": "client.gateway", "spare": "client.spare"}
    text = ""
    for name in (f"{names[part]}.log", f"{part}.out"):
        with contextlib.suppress(OSError):
            if lines := (store.logs / name).read_text(errors="replace").splitlines()[-8:]:
                text += f"\n{store.logs / name}:\n    " + "\n    ".join(lines)
    return text


def watch(store: ObjectStore, place: Path, *, remove: bool) -> None:
    """Leave somebody behind who ends the object store when nobody holds a lock on the place any more."""
    argv = [sys.executable, "-sEB", str(HERE / "watcher.py"), store.folder, str(place)]
    with open(os.devnull) as nothing, open(Path(store.folder, "watcher.log"), "ab") as output:
        watcher = subprocess.Popen(
            [*argv, *(["--rm"] if remove else [])],
            stdin=nothing,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    watcher.returncode = 0


# Users


def make_user(store: ObjectStore, name: str) -> dict[str, str]:
    """A user's keys, as Ceph has made them; of one that is there, those that it has."""
    try:
        text = run(store, "radosgw-admin", "--name", "client.gateway", "user", "info", f"--uid={name}")
    except Trouble:
        more = ["user", "create", f"--uid={name}", f"--display-name={name}", "--max-buckets=0"]  # no bound
        text = run(store, "radosgw-admin", "--name", "client.gateway", *more)
    found: dict[str, str] = json.loads(text)["keys"][0]
    return found


def write_credentials(file: Path, section: str, keys: dict[str, str]) -> None:
    """Add a section to a file of credentials, which its owner alone may read."""
    before = file.read_text() if file.exists() else ""
    if f"[{section}]\n" in before:
        return
    text = f"[{section}]\naws_access_key_id = {keys['access_key']}\n"
    text += f"aws_secret_access_key = {keys['secret_key']}\n"
    new = file.with_name(f"{file.name}.new")
    new.touch(mode=0o600)
    new.write_text(before + text)
    new.replace(file)


def user(options: argparse.Namespace) -> None:
    """Make another user, whose keys are a section of the same file."""
    store = found(options)
    if not options.name.isalnum():
        raise Trouble(f"The name of a user is of letters and digits; {options.name!r} is not.")
    with locked(Path(store.folder)):
        write_credentials(store.credentials, options.name, make_user(store, options.name))


def admin(options: argparse.Namespace) -> None:
    """Run radosgw-admin, as an administrator."""
    store = found(options)
    say(run(store, "radosgw-admin", "--name", "client.gateway", *options.words))


# down


def end(store: ObjectStore, *, remove: bool = False) -> None:
    """End all daemons: in order, or at once where all is removed anyway."""
    daemons.end(store, reversed(daemons.PARTS), signal.SIGKILL if remove else signal.SIGTERM)
    if remove:
        shutil.rmtree(store.folder)


def down(options: argparse.Namespace) -> None:
    store = found(options)
    with locked(Path(store.folder)):
        end(store, remove=options.rm)


def found(options: argparse.Namespace) -> ObjectStore:
    folder = layout.checked_folder(options.folder)
    store = layout.read(folder)
    if store is None:
        raise Trouble(f"{folder} is not the folder of an object store: it has no object-store.json.")
    return store


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One who changes something at a time."""
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# The rest


def status(options: argparse.Namespace) -> None:
    store = found(options)
    parts = daemons.running(store)
    if options.json:
        say(json.dumps({**store.public(), "parts": parts}) + "\n")
        return
    if not parts:
        raise Trouble(f"The object store in {store.folder} does not run.")
    for part in daemons.PARTS:
        where = f", {store.host}:{store.ports_of(part)[0]}" if part in ("gateway", "spare") else ""
        say(f"{part:8} {f'process {parts[part]}{where}' if part in parts else 'does not run'}\n")


def change(options: argparse.Namespace) -> None:
    """Stop, kill or start one part of an object store."""
    store = found(options)
    part, verb = options.part, options.verb
    with locked(Path(store.folder)):
        if verb != "start":
            daemons.end(store, [part], signal.SIGKILL if verb == "kill" else signal.SIGTERM)
        elif part in daemons.running(store):
            raise Trouble(f"{part} runs already.")
        elif part in ("gateway", "spare"):
            start_gateway(store, part, time.monotonic() + 60.0)
        else:
            daemons.start(store, part)


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="object_store.py", description="A real object store on one host.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, does: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=text, description=text)
        command.add_argument("folder", help="where all of the object store lies")
        command.set_defaults(does=does)
        return command

    command = verb("up", up, "Start an object store, and say how it is used.")
    command.add_argument("--port", type=int, help="the gateway's port on 127.0.0.1 (default: a free one)")
    command.add_argument("--size", type=int, default=20, metavar="GIB", help="room in it (default 20)")
    command.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds until it has to run"
    )
    command.add_argument(
        "--while-locked",
        metavar="PLACE",
        help="end when nobody has a shared flock on this folder any more, and remove it if it is empty then",
    )
    command.add_argument("--rm", action="store_true", help="and then remove the object store's folder")
    command = verb("down", down, "End an object store.")
    command.add_argument("--rm", action="store_true", help="remove the folder, too")
    command = verb("status", status, "Say what runs.")
    command.add_argument("--json", action="store_true", help="for programs")
    for name, text in (
        ("start", "Start a part that does not run: mon, osd, gateway or spare."),
        ("stop", "Stop a part in order."),
        ("kill", "Kill a part (SIGKILL)."),
    ):
        verb(name, change, text).add_argument("part", choices=daemons.PARTS)
    verb("user", user, "Make another user.").add_argument("name")
    command = verb("admin", admin, "Run radosgw-admin: admin FOLDER -- WORDS …")
    command.add_argument("words", nargs="+")
    return parser


def main() -> int:
    options = arguments().parse_args()
    try:
        options.does(options)
    except (Trouble, RuntimeError, OSError, subprocess.TimeoutExpired) as problem:
        sys.stderr.write(f"{problem}\n")
        return getattr(problem, "status", FAILED)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
