"""Codes: programs as data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from grange.core.data.folder import folder_contents
from grange.core.data.str import text
from grange.core.errors import InputInvalid
from grange.core.node import Data, register


class Code(Data):
    """A program. Made as InstalledCode or PortableCode."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.code.Code."

    @property
    def executable(self) -> str:
        """The path of the program."""
        return str(self._attributes["filepath_executable"])

    @property
    def with_mpi(self) -> bool | None:
        """Whether it is to be run under MPI; None where the code does not say."""
        value = self._attributes.get("with_mpi")
        return value if isinstance(value, bool) else None


def code_attributes(
    filepath_executable: object,
    *,
    with_mpi: bool | None,
    default_calc_job_plugin: str | None,
    prepend_text: str,
    append_text: str,
    use_double_quotes: bool,
    wrap_cmdline_params: bool,
) -> dict[str, Any]:
    """The attributes of a code, under AiiDA's names.

    Errors: InputInvalid.
    """
    executable = text(filepath_executable, "filepath_executable")
    if not executable:
        raise InputInvalid("filepath_executable", executable, "the path of a program")
    if with_mpi not in (None, True, False):
        raise InputInvalid("with_mpi", with_mpi, "True, False or None")
    return {
        "filepath_executable": executable,
        "with_mpi": with_mpi,
        "input_plugin": default_calc_job_plugin,
        "prepend_text": text(prepend_text, "prepend_text"),
        "append_text": text(append_text, "append_text"),
        "use_double_quotes": bool(use_double_quotes),
        "wrap_cmdline_params": bool(wrap_cmdline_params),
    }


@register
class InstalledCode(Code):
    """A program that is installed on a computer."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.code.installed.InstalledCode."

    def __init__(
        self,
        filepath_executable: str,
        *,
        computer_id: int | None = None,
        with_mpi: bool | None = None,
        default_calc_job_plugin: str | None = None,
        prepend_text: str = "",
        append_text: str = "",
        use_double_quotes: bool = False,
        wrap_cmdline_params: bool = False,
        label: str = "",
        description: str = "",
    ) -> None:
        """A program by its absolute path, or by a name that is looked up on PATH where it runs.

        Errors: InputInvalid.
        """
        attributes = code_attributes(
            filepath_executable,
            with_mpi=with_mpi,
            default_calc_job_plugin=default_calc_job_plugin,
            prepend_text=prepend_text,
            append_text=append_text,
            use_double_quotes=use_double_quotes,
            wrap_cmdline_params=wrap_cmdline_params,
        )
        self._begin(attributes, label or filepath_executable.rsplit("/", 1)[-1], description)
        self._computer_id = computer_id

    @property
    def value(self) -> str:
        """The path of the program."""
        return self.executable


@register
class PortableCode(Code):
    """A program whose files are in the repository and are put where it runs."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.code.portable.PortableCode."

    def __init__(
        self,
        filepath_executable: str,
        filepath_files: str | Path | Mapping[str, bytes | Path],
        *,
        with_mpi: bool | None = None,
        default_calc_job_plugin: str | None = None,
        prepend_text: str = "",
        append_text: str = "",
        use_double_quotes: bool = False,
        wrap_cmdline_params: bool = False,
        label: str = "",
        description: str = "",
    ) -> None:
        """The program's path inside its files, and these: a folder, or a dict of path → content.

        Errors: InputInvalid, also if the program is none of the files.
        """
        attributes = code_attributes(
            filepath_executable,
            with_mpi=with_mpi,
            default_calc_job_plugin=default_calc_job_plugin,
            prepend_text=prepend_text,
            append_text=append_text,
            use_double_quotes=use_double_quotes,
            wrap_cmdline_params=wrap_cmdline_params,
        )
        files = folder_contents(filepath_files, "filepath_files")
        if filepath_executable not in files:
            raise InputInvalid("filepath_executable", filepath_executable, "one of the files")
        self._begin(attributes, label or filepath_executable.rsplit("/", 1)[-1], description)
        self._files = files

    @property
    def value(self) -> str:
        """The path of the program inside its files."""
        return self.executable
