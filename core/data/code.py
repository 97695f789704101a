"""Codes: programs as data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from grange.core.data.code_value import CodeValue, Launch
from grange.core.data.folder import folder_contents
from grange.core.data.str import text
from grange.core.errors import InputInvalid
from grange.core.node import Data, register

#: What stands for the image in the command of a container engine.
IMAGE_NAME = "{image_name}"


class Code(Data):
    """A program. Made as InstalledCode, PortableCode or ContainerizedCode."""

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

    @property
    def prepend_text(self) -> str:
        """Lines for a shell before the program, as to load modules."""
        return str(self._attributes.get("prepend_text") or "")

    @property
    def append_text(self) -> str:
        """Lines for a shell after the program."""
        return str(self._attributes.get("append_text") or "")

    @property
    def value(self) -> CodeValue:
        """The program as the first argument of a command: its path, and how it is started."""
        return CodeValue(self.executable, self._launch())

    def _launch(self) -> Launch:
        return Launch(
            prepend_text=self.prepend_text,
            append_text=self.append_text,
            with_mpi=self.with_mpi,
            expand=bool(self._attributes.get("use_double_quotes")),
            computer_id=self._computer_id,
        )


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
    def value(self) -> CodeValue:
        """The program as the first argument of a command, where its files are put beside the others."""
        return CodeValue(f"./{self.executable}", self._launch())

    def _launch(self) -> Launch:
        return replace(super()._launch(), files={path: self.key_of_file(path) for path in self._files})


@register
class ContainerizedCode(InstalledCode):
    """A program inside a container image, on the computer where the image is, or on any."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.code.containerized.ContainerizedCode."

    def __init__(
        self,
        engine_command: str,
        image_name: str,
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
        """A program by its path inside an image, and the command that runs something there.

            gr.ContainerizedCode('ch-run --bind "$PWD" --cd "$PWD" {image_name} --', "/images/qe", "pw.x")

        engine_command: a line for a shell; the task's directory is $PWD. image_name: a path or a name,
        whatever the engine takes. wrap_cmdline_params: the engine takes program and arguments as one
        argument, as `sh -c` does.

        Errors: InputInvalid.
        """
        super().__init__(
            filepath_executable,
            computer_id=computer_id,
            with_mpi=with_mpi,
            default_calc_job_plugin=default_calc_job_plugin,
            prepend_text=prepend_text,
            append_text=append_text,
            use_double_quotes=use_double_quotes,
            wrap_cmdline_params=wrap_cmdline_params,
            label=label,
            description=description,
        )
        engine_command = text(engine_command, "engine_command")
        if IMAGE_NAME not in engine_command or "\n" in engine_command:
            raise InputInvalid("engine_command", engine_command, f"one line with {IMAGE_NAME} in it")
        if not text(image_name, "image_name") or "\n" in image_name:
            raise InputInvalid("image_name", image_name, "the path or name of an image")
        self._attributes |= {"engine_command": engine_command, "image_name": image_name}

    @property
    def engine_command(self) -> str:
        """The template of the command that runs something in the image."""
        return str(self._attributes.get("engine_command") or "")

    @property
    def image_name(self) -> str:
        """The image, as the engine takes it."""
        return str(self._attributes.get("image_name") or "")

    def _launch(self) -> Launch:
        return replace(
            super()._launch(),
            container=self.engine_command.replace(IMAGE_NAME, shlex.quote(self.image_name)),
            line=bool(self._attributes.get("wrap_cmdline_params")),
        )
