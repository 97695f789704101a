"""A computer as a file: TOML or YAML, from a folder or the web, and back.

    label = "lumi"
    hostname = "lumi.csc.fi"
    partition = "small"

    [ssh]
    user = "ada"

The keys are the fields of Computer. What `verdi computer setup` takes is read as well, so that registries of
such files work: its names, its mpirun fields, kB of memory, and directives of Slurm in its prepend_text.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from grange.core.computer import SCHEDULER_TYPES, TRANSPORT_TYPES, of_aiida_mpirun
from grange.core.computer_check import checked, joined
from grange.core.errors import InputInvalid, InputMissing
from grange.farm.computer import Computer, SshSettings

Format = Literal["toml", "yaml"]

FIELDS = tuple(field.name for field in dataclasses.fields(Computer))
SSH_FIELDS = tuple(field.name for field in dataclasses.fields(SshSettings))

#: A file of a computer is a page; what is larger is something else.
LARGEST = 1 << 18
#: Of a whole download.
TIMEOUT_S = 20.0

# Names of AiiDA's files that are other names here; the ones below have the same name and meaning.
_AIIDA_NAMES = {
    "mpirun_command": "mpirun", "mpiprocs_per_machine": "cores_per_node",
    "default_memory_per_machine": "memory_mb_per_node",
}  # fmt: skip
# The same of its files for `verdi computer configure`.
_AIIDA_SSH_NAMES = {
    "username": "user", "port": "port", "key_filename": "key_file", "proxy_jump": "proxy_jump",
    "timeout": "connect_timeout_s",
}  # fmt: skip
# What AiiDA needs to be told and grange not: how words are quoted, how keys are looked for, which unknown
# hosts are trusted (none), what else a registry says of a file.
_AIIDA_ONLY = (
    "use_double_quotes", "metadata", "look_for_keys", "allow_agent", "use_login_shell", "compress",
    "load_system_host_keys", "key_policy", "gss_auth", "gss_kex", "gss_deleg_creds", "gss_host",
    "minimum_scheduler_poll_interval",
)  # fmt: skip
_SBATCH = re.compile(r"#SBATCH\s+(.+?)\s*")
# A place of a template that a registry leaves to fill in.
_UNFILLED = re.compile(r"\{\{\s*\w+\s*(\|.*?)?\}\}|\{%.*?%\}")
_LOOKS_LIKE_TOML = re.compile(r"^\s*(\[\w+\]|[\w\"-]+\s*=)", re.MULTILINE)


def read(source: str) -> dict[str, Any]:
    """What a file or an http(s) URL says of a computer: fields of Computer; "ssh" is a dict.

    Not checked field by field, because options may still replace some of it: computer_of() does that.
    Errors: InputInvalid, which names the source and the key; OSError when a file cannot be read.
    """
    return _fields(read_document(source), source)


def read_document(source: str) -> dict[Any, Any]:
    """The keys and values of a file or an http(s) URL, whatever they are about.

    Errors: as read().
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        from grange.core.web_file import fetch

        text = fetch(source, largest=LARGEST, timeout_s=TIMEOUT_S)
        path = re.split(r"[?#]", source)[0]
    else:
        path = source
        with Path(source).expanduser().open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise InputInvalid("config", source, f"a file of a computer, at most {LARGEST // 1024} KiB")
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise InputInvalid("config", source, "a text in UTF-8") from None
    form: Format | None = "yaml" if path.endswith((".yaml", ".yml")) else None
    return _keys_and_values(text, "toml" if path.endswith(".toml") else form, source)


def parse(text: str, form: Format | None = None, source: str = "config") -> dict[str, Any]:
    """What a text says of a computer, as read() does; without a form, TOML is tried before YAML.

    Errors: InputInvalid.
    """
    return _fields(_keys_and_values(text, form, source), source)


def computer_of(values: Mapping[str, Any], base: Computer | None = None) -> Computer:
    """A computer from what read() or parse() found; what is not said is as in base, else as by default.

    Errors: InputInvalid; InputMissing without a label, or a hostname where one is needed.
    """
    values = dict(values)
    ssh = dataclasses.replace(base.ssh if base else SshSettings(), **values.pop("ssh", {}))
    if base is not None:
        return checked(dataclasses.replace(base, ssh=ssh, **values))
    if values.get("label") in (None, ""):
        raise InputMissing("label", "a name for the computer")
    if values.get("hostname") is None and values.get("transport") != "local":
        raise InputMissing("hostname", "the host that ssh connects to")
    return checked(Computer(ssh=ssh, **values))


def document_of(computer: Computer) -> dict[str, Any]:
    """A computer as plain keys and values, without those that are not known (None)."""
    values = {name: getattr(computer, name) for name in FIELDS if getattr(computer, name) is not None}
    values["directives"] = list(computer.directives)
    # last, because in TOML everything below a table's name is in it
    del values["ssh"]
    return {**values, "ssh": dataclasses.asdict(computer.ssh)}


def write(computer: Computer, form: Format = "toml") -> str:
    """A computer as the text that parse() reads to the same computer."""
    document = document_of(computer)
    if form == "yaml":
        import yaml

        return yaml.dump(
            document, Dumper=_yaml_dumper(), sort_keys=False, allow_unicode=True, default_flow_style=False
        )
    import tomli_w

    return tomli_w.dumps(document, multiline_strings=True).rstrip("\n") + "\n"


# ---------------------------------------------------------------- reading


def _keys_and_values(text: str, form: Format | None, source: str) -> dict[Any, Any]:
    if text.lstrip()[:1] == "<":
        raise InputInvalid(source, text, "TOML or YAML; this is a web page: take the address of the raw file")
    document = _document(text.removeprefix("\ufeff"), form, source)
    if not isinstance(document, dict):
        raise InputInvalid(source, document, 'keys and values, as in label = "lumi"')
    return document


def _document(text: str, form: Format | None, source: str) -> Any:
    if form != "yaml":
        try:
            return tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            if form == "toml" or _LOOKS_LIKE_TOML.search(text):
                raise InputInvalid(source, text, f"TOML: {error}") from None
    import yaml

    try:
        return yaml.load(text, Loader=_yaml_loader())  # noqa: S506, a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that there is not
        raise InputInvalid(source, text, f"TOML or YAML: {' '.join(str(error).split())}") from None


def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values; no references, of which a few lines can make more than a memory holds."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("references (*name) are not read: write the value itself")
            return super().compose_node(parent, index)

    return Loader


def _yaml_dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Texts of several lines as blocks, as a person would write them."""

        def represent_text(self, value: str) -> Any:
            # PyYAML folds what counts as a line break in YAML only, and would not read it back
            odd = any(not (character.isprintable() or character == "\n") for character in value)
            style = '"' if odd else "|" if "\n" in value else None
            return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, Dumper.represent_text)
    return Dumper


def _fields(document: dict[Any, Any], source: str) -> dict[str, Any]:
    """The keys of a document as fields."""
    values: dict[str, Any] = {}
    ssh: dict[str, Any] = {}
    for key, value in document.items():
        if key == "ssh":
            ssh.update(_ssh_fields(value, source))
        elif key == "safe_interval":
            values["connection_interval_s"] = value
        elif key in _AIIDA_SSH_NAMES:
            # AiiDA writes what is not set as null or nothing
            ssh.update({_AIIDA_SSH_NAMES[key]: value} if value else {})
        elif key == "proxy_command" and value:
            raise InputInvalid(
                f"{source}: {key}", value, "proxy_jump, or a ProxyCommand in ~/.ssh/config, which is read"
            )
        elif key in _AIIDA_NAMES:
            values.update({} if value is None else {_AIIDA_NAMES[key]: _of_aiida(source, key, value)})
        elif key in FIELDS:
            values.update({} if value is None else {key: value})
        elif key not in _AIIDA_ONLY and key != "proxy_command":
            raise _unknown(source, key, value, (*FIELDS, *_AIIDA_NAMES, *_AIIDA_SSH_NAMES))
    for key, value in values.items():
        if isinstance(value, str) and (unfilled := _UNFILLED.search(value)):
            raise InputInvalid(f"{source}: {key}", value, f"a value of yours in the place of {unfilled[0]}")
    values.update({} if "transport" not in values else _kind(values, "transport", TRANSPORT_TYPES))
    values.update({} if "scheduler" not in values else _kind(values, "scheduler", SCHEDULER_TYPES))
    _move_directives(values)
    return {**values, "ssh": ssh} if ssh else values


def _ssh_fields(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputInvalid(f"{source}: ssh", value, f"keys and values: {', '.join(SSH_FIELDS)}")
    for key in value:
        if key not in SSH_FIELDS:
            raise _unknown(f"{source}: ssh", key, value[key], SSH_FIELDS)
    return {key: setting for key, setting in value.items() if setting is not None}


def _unknown(source: str, key: object, value: object, known: tuple[str, ...]) -> InputInvalid:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return InputInvalid(
        f"{source}: {key}", value, f"a known key: {near[0]}?" if near else f"a known key: {', '.join(known)}"
    )


def _of_aiida(source: str, key: str, value: Any) -> Any:
    if key == "mpirun_command":
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            value = joined(value)
        return of_aiida_mpirun(value) if isinstance(value, str) else value
    if key == "default_memory_per_machine":
        if type(value) is not int or value < 1024:
            raise InputInvalid(f"{source}: {key}", value, "memory in kB, at least 1024")
        return value // 1024
    return value


def _kind(values: Mapping[str, Any], key: str, types: Mapping[str, str]) -> dict[str, Any]:
    """AiiDA's entry points by our names; older files of AiiDA leave "core." out."""
    value = values[key]
    if not isinstance(value, str):
        return {}
    return {key: types.get(value) or types.get(f"core.{value}") or value}


def _move_directives(values: dict[str, Any]) -> None:
    """AiiDA has no place for directives but the first lines of prepend_text: put them where they belong."""
    text = values.get("prepend_text")
    if not isinstance(text, str) or "#SBATCH" not in text:
        return
    found = [(line, _SBATCH.fullmatch(line.strip())) for line in text.splitlines()]
    moved = [directive[1] for _, directive in found if directive]
    kept = [line for line, directive in found if not directive]
    values["prepend_text"] = "\n".join(kept).strip("\n") + "\n" if "".join(kept).strip() else ""
    for directive in moved:
        name, _, value = directive.partition("=")
        field = name.removeprefix("--")
        if field in ("partition", "account", "qos") and value:
            values.setdefault(field, value)
        elif isinstance(values.get("directives", []), list):
            values["directives"] = [*values.get("directives", []), directive]
