"""A code as keys and values: of options, of a file in TOML or YAML, here or on the web.

    label = "pw"
    computer = "lumi"
    filepath_executable = "/opt/qe/bin/pw.x"
    prepend_text = "module load qe"
    with_mpi = true

What `verdi code create --config` and `verdi code setup` take is read as well.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

from grange.core.computer_file import read_document
from grange.core.data.code import Code, ContainerizedCode, InstalledCode, PortableCode
from grange.core.errors import InputInvalid, InputMissing

_COMMON = (
    "label", "description", "default_calc_job_plugin", "with_mpi", "prepend_text", "append_text",
    "use_double_quotes", "wrap_cmdline_params", "filepath_executable",
)  # fmt: skip
FIELDS = (*_COMMON, "computer", "filepath_files", "engine_command", "image_name")
# Names of `verdi code setup`.
_AIIDA_NAMES = {
    "input_plugin": "default_calc_job_plugin", "remote_abs_path": "filepath_executable",
    "code_rel_path": "filepath_executable", "code_folder": "filepath_files",
}  # fmt: skip
# What those files say besides.
_AIIDA_ONLY = ("on_computer", "non_interactive", "metadata", "node_type", "uuid")


def read(source: str) -> dict[str, Any]:
    """What a file or an http(s) URL says of a code. A folder of files is meant from where the file lies.

    Errors: InputInvalid, which names the source and the key; OSError when a file cannot be read.
    """
    values: dict[str, Any] = {}
    for key, value in read_document(source).items():
        name = _AIIDA_NAMES.get(key, key)
        if name in FIELDS:
            values.update({} if value is None else {name: value})
        elif key not in _AIIDA_ONLY:
            near = difflib.get_close_matches(str(key), FIELDS, n=1, cutoff=0.5)
            known = f"a known key: {near[0]}?" if near else f"a known key: {', '.join(FIELDS)}"
            raise InputInvalid(f"{source}: {key}", value, known)
    files = values.get("filepath_files")
    if isinstance(files, str):
        if "://" in source:
            raise InputInvalid(
                f"{source}: filepath_files", files, "a folder of this machine: give it by --files"
            )
        values["filepath_files"] = os.path.join(os.path.dirname(source), os.path.expanduser(files))
    return values


def code_of(values: Mapping[str, Any], computer_id: int | None) -> Code:
    """A code that is not stored yet: portable where it has files, containerised where it has an engine.

    Errors: InputInvalid; InputMissing.
    """
    given = {name: value for name, value in values.items() if name in _COMMON}
    given.setdefault("label", "")
    if not given.get("filepath_executable"):
        raise InputMissing("filepath_executable", "the path of a program")
    contained = [name for name in ("engine_command", "image_name") if values.get(name)]
    if values.get("filepath_files") is not None:
        if contained or computer_id is not None:
            name = contained[0] if contained else "computer"
            raise InputInvalid(
                name, values.get(name), "nothing beside filepath_files: a portable code goes where it is run"
            )
        return PortableCode(filepath_files=values["filepath_files"], **given)
    if len(contained) == 1:
        missing = "image_name" if contained == ["engine_command"] else "engine_command"
        raise InputMissing(missing, f"what a code with {contained[0]} needs too")
    if contained:
        return ContainerizedCode(
            values["engine_command"], values["image_name"], computer_id=computer_id, **given
        )
    return InstalledCode(computer_id=computer_id, **given)
