"""Calculation jobs: a program with typed inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from grange.core.command import Command
from grange.core.errors import InputInvalid
from grange.core.exit_code import ExitCode
from grange.core.exit_codes import ExitCodes, ExitCodesOfClass
from grange.core.exit_status import FIRST_OWN
from grange.core.output_files import OutputFiles
from grange.farm.monitor import Monitor

if TYPE_CHECKING:
    from grange.core.process_builder import ProcessBuilder


class CalcJob:
    """A program with typed inputs and outputs; derive from it.

        class Energy(gr.CalcJob):
            class Inputs:
                molecule: gr.Structure
                charge: int = 0
            class Outputs:
                energy: float
            NO_ENERGY = gr.ExitCode(310, "no energy in the output")

            def prepare(self, inputs):
                return gr.Command(["xtb", "in.xyz"], files={"in.xyz": ...}, retrieve=["*.json"])

            def parse(self, files):
                return {"energy": ...} or self.NO_ENERGY

    prepare() turns plain input values into the command; parse() turns the files that it left into
    outputs, or into one of the class's exit codes. Both see the inputs as self.inputs too. parse() is
    called when the program returned 0, and, where parse_failed is true, for every return code, and when a
    limit, a monitor or a signal ended the program: files.ended_by is the exit code for that then, which stays
    that of the process unless parse() returns another one.
    monitors: what may stop each call's program, besides the monitors of its command.
    A class method import_inputs(files) may read out of the files of a folder with which inputs it was
    computed, for gr.import_calculation.
    version: change it when results change although the source does not. caching: False where equal inputs
    need not give equal outputs: no call is then answered by another one.
    """

    class Inputs:
        """Ports and their types; a default makes a port optional."""

    class Outputs:
        """What parse() has to give; a default (None) makes an output optional."""

    version: ClassVar[str] = ""
    caching: ClassVar[bool] = True
    parse_failed: ClassVar[bool] = False
    monitors: ClassVar[Sequence[Monitor]] = ()

    #: Its exit codes, and those of every job with AiiDA's labels, for whoever looks at what became of it.
    exit_codes: ClassVar[ExitCodes] = ExitCodesOfClass()  # type: ignore[assignment]  # gives them

    inputs: SimpleNamespace

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        taken: dict[int, str] = {}
        for name, code in vars(cls).items():
            if not isinstance(code, ExitCode):
                continue
            where = f"{cls.__name__}.{name}"
            if code.status < FIRST_OWN:
                raise InputInvalid(
                    where, code.status, f"a status from {FIRST_OWN} on (lower ones are grange's)"
                )
            if code.status in taken:
                raise InputInvalid(where, code.status, f"a status that {taken[code.status]} does not have")
            taken[code.status] = name

    @classmethod
    def get_builder(cls) -> ProcessBuilder:
        """A builder, to be filled in attribute by attribute and submitted."""
        from grange.core.process_builder import ProcessBuilder

        return ProcessBuilder(cls)

    def prepare(self, inputs: Any) -> Command:
        """The command for these inputs."""
        raise NotImplementedError(f"{type(self).__name__} needs a method prepare(self, inputs)")

    def parse(self, files: OutputFiles) -> Mapping[str, object] | ExitCode | None:
        """Outputs by name, or an exit code; nothing means no outputs but the files."""
        return {}
