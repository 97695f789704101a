"""What `grange computer add` and `edit` ask for: options, and prompts for what is missing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, Literal

import click

Values = dict[str, Any]

#: Said wherever somebody meets that setting.
PRIVATE_WHEEL = (
    "private-wheel: the HyperQueue server that grange starts there has NO authentication and listens on "
    "every network interface of its host. Whoever reaches its port runs commands as you. Only for machines "
    "and networks that nobody else can reach, never for a login node that you share. On a cluster take hq, "
    "a server with keys (--hyperqueue hq, --hq-program, --hq-binary)."
)

_NONE_IF_0 = ("cores_per_node", "memory_mb_per_node")
_FILES_HERE = ("ssh.key_file", "ssh.known_hosts", "ssh.config_file", "hq_binary")

#: Option, field (of the SSH settings: "ssh.…"), type, help.
_OPTIONS: tuple[tuple[str, str, Any, str], ...] = (
    ("--host", "hostname", str, "The host that ssh connects to, or its name in ~/.ssh/config."),
    ("--description", "description", str, "What it is, in a sentence."),
    (
        "--transport", "transport", click.Choice(("local", "ssh", "openssh")),
        "local: this machine, or a cluster whose commands work here. ssh: keys, agent, jump hosts. openssh: "
        "the program ssh, a second factor is typed once (`grange computer connect`).",
    ),
    ("--scheduler", "scheduler", click.Choice(("direct", "slurm")), "direct: processes. slurm: jobs."),
    (
        "--hyperqueue", "hyperqueue", click.Choice(("none", "hq", "private-wheel")),
        "none: each chunk is a job of Slurm. hq: `hq server start` on the login node, with keys; workers in "
        "allocations. private-wheel: a server WITHOUT authentication, only where nobody else can reach it.",
    ),
    ("--hq-program", "hq_program", str, "The program hq there: a path, or a name on PATH (--prepend-text)."),
    ("--hq-binary", "hq_binary", str, "A file here, the program hq, that is sent there once."),
    ("--work-dir", "work_dir", str, "Our folder there, seen by all nodes; ~ and {username} are filled in."),
    ("--python", "python", str, "The interpreter there, 3.9 or newer."),
    ("--user", "ssh.user", str, "Your name there."),
    ("--port", "ssh.port", int, "Of sshd; 0: as ~/.ssh/config says, else 22."),
    ("--key-file", "ssh.key_file", str, "A private key here. Its passphrase is asked for, and kept nowhere."),
    ("--proxy-jump", "ssh.proxy_jump", str, "Hosts on the way, as for ssh -J; none for a direct way."),
    ("--known-hosts", "ssh.known_hosts", str, "A file of host keys besides ~/.ssh/known_hosts."),
    ("--ssh-config", "ssh.config_file", str, "Instead of ~/.ssh/config; none: no configuration at all."),
    ("--connect-timeout", "ssh.connect_timeout_s", float, "Seconds to wait for a connection."),
    ("--keepalive", "ssh.keepalive_s", float, "Seconds between signs of life; 0: none."),
    ("--cores-per-node", "cores_per_node", int, "What a node gives to tasks; 0: not known."),
    ("--memory-per-node", "memory_mb_per_node", int, "The same of memory, in MB; 0: not known."),
    ("--gpus-per-node", "gpus_per_node", int, "The same of GPUs."),
    ("--partition", "partition", str, "Of Slurm; \"\": its default."),
    ("--account", "account", str, "That Slurm counts the time of."),
    ("--qos", "qos", str, "A quality of service of Slurm."),
    ("--shebang", "shebang", str, "The first line of job scripts."),
    ("--prepend-text", "prepend_text", str, "Shell lines before what a job runs, as module load."),
    ("--append-text", "append_text", str, "Shell lines after it."),
    ("--mpirun", "mpirun", str, "With {tot_num_mpiprocs}, {nodes}, {procs_per_node} where numbers belong."),
    ("--max-queued-jobs", "max_queued_jobs", int, "Jobs in the queue at once, of all processes together."),
    ("--max-allocations", "max_allocations", int, "Allocations at once."),
    (
        "--connection-interval", "connection_interval_s", float,
        "The least seconds between the beginnings of two connections.",
    ),
    ("--slots", "slots", int, "With direct: cores that tasks may use together; 0: all."),
    (
        "--delivery", "delivery", click.Choice(("ssh", "store")),
        "ssh: results come through this machine. store: nodes put them into the profile's S3 store, by "
        "signed URLs, and fetch large input files there; they have to reach its server.",
    ),
)  # fmt: skip

_Condition = Literal["always", "remote", "slurm"]

#: What is asked where it was not said: the field, the question, and when.
_QUESTIONS: tuple[tuple[str, str, _Condition], ...] = (
    ("label", "Name of the computer", "always"),
    ("description", "Description", "always"),
    ("transport", "Reached by: local, ssh, openssh", "always"),
    ("hostname", "Host", "remote"),
    ("ssh.user", 'Your name there ("" as ~/.ssh/config has it)', "remote"),
    ("work_dir", "Folder there", "always"),
    ("scheduler", "Scheduler: slurm, direct", "always"),
    ("partition", 'Partition ("" for the default)', "slurm"),
    ("account", 'Account ("" for the default)', "slurm"),
    ("cores_per_node", 'Cores of a node ("" where not known)', "always"),
    ("memory_mb_per_node", 'Memory of a node in MB ("" where not known)', "always"),
    ("prepend_text", 'Shell line before each job, as "module load hyperqueue"', "slurm"),
    ("hyperqueue", "HyperQueue: hq (a server with keys), none, private-wheel (see --help)", "slurm"),
)


def computer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each field of a computer; the command gets those that were given as `given`."""

    def with_given(**arguments: Any) -> Any:
        given = {name: arguments.pop(_parameter(name)) for _, name, _, _ in _OPTIONS}
        given["ssh.restricted"] = arguments.pop("restricted")
        directives = arguments.pop("directives")
        given["directives"] = list(directives) if directives else None
        return command(given={name: value for name, value in given.items() if value is not None}, **arguments)

    wrapped: Callable[..., Any] = functools.update_wrapper(with_given, command)
    wrapped = click.option(
        "--directive", "directives", multiple=True, metavar="OPTION",
        help="A further option of sbatch, as --constraint=rome; repeatable.",
    )(wrapped)  # fmt: skip
    wrapped = click.option(
        "--restricted/--not-restricted", "restricted", default=None,
        help="A forced command there lets through only what automation accounts may do.",
    )(wrapped)  # fmt: skip
    for option, name, kind, text in reversed(_OPTIONS):
        wrapped = click.option(option, _parameter(name), type=kind, default=None, help=text)(wrapped)
    return click.option(
        "--config",
        metavar="FILE_OR_URL",
        help="TOML or YAML, as `grange computer export` writes it or `verdi computer setup` reads it.",
    )(wrapped)


def merged(values: Values, given: Values) -> Values:
    """What a file says, with what the options say in its place."""
    values = {**values, "ssh": dict(values.get("ssh", {}))}
    for name, value in given.items():
        if name in _NONE_IF_0 and value == 0:
            value = None
        if name in _FILES_HERE and value not in ("", "none") and not value.startswith("~"):
            value = os.path.abspath(value)
        if name.startswith("ssh."):
            values["ssh"][name.removeprefix("ssh.")] = value
        else:
            values[name] = value
    if given.get("hq_binary") and "hyperqueue" not in given:
        values["hyperqueue"] = "hq"
    return values


def ask(values: Values, *, only: tuple[str, ...] | None = None) -> Values:
    """Ask for what values does not say, of `only` or of all that is worth it; a bad answer is asked again."""
    from grange.farm.computer import Computer

    values = {**values, "ssh": dict(values.get("ssh", {}))}
    default = Computer(label="")
    for name, question, condition in _QUESTIONS:
        holder = values["ssh"] if name.startswith("ssh.") else values
        field = name.removeprefix("ssh.")
        asked = only is None or name in only
        apart = (
            values.get("transport") == "local" if condition == "remote"
            else condition == "slurm" and values.get("scheduler", default.scheduler) != "slurm"
        )  # fmt: skip
        if field in holder or apart or not asked:
            continue
        usual = getattr(default.ssh if holder is not values else default, field)
        required = name in ("label", "hostname")
        holder[field] = click.prompt(
            question,
            default=None if required else "" if usual is None else usual,
            show_default=bool(usual),
            value_proc=_answer(name, usual),
        )
    return values


def _answer(name: str, usual: object) -> Callable[[Any], Any]:
    def answer(text: Any) -> Any:
        from grange.core.computer_check import checked_field
        from grange.core.errors import InputInvalid

        value: Any = text
        if name in _NONE_IF_0:
            value = None if text in ("", "0") else int(text) if str(text).isdecimal() else text
        elif name == "prepend_text" and text and not text.endswith("\n"):
            value = text + "\n"
        try:
            return checked_field(name, value)
        except InputInvalid as error:
            raise click.BadParameter(str(error)) from None

    return answer


def _parameter(name: str) -> str:
    return name.replace(".", "_")
