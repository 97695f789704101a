"""Python functions that are recorded where they are called: one process, here and now."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from grange.core import process as rows
from grange.core.calls import Argument, make_argument
from grange.core.errors import GrangeError, InputInvalid
from grange.core.exit_code import ExitCode
from grange.core.function_recipe import FunctionRecipe, outputs_of_return
from grange.core.graph import forgotten_on_error, store
from grange.core.link import Link, LinkType
from grange.core.node import Data
from grange.core.port import port_of
from grange.core.process import NewProcess
from grange.core.profile import Profile
from grange.core.transition import State

_recording: ContextVar[Profile | None] = ContextVar("grange_recording", default=None)


class CalculationFailed(GrangeError):
    """A calcfunction returned an exit code.

    exit_code: what it returned; process_id: its record.
    """

    def __init__(self, label: str, exit_code: ExitCode, process_id: int) -> None:
        self.exit_code = exit_code
        self.process_id = process_id
        super().__init__(
            f"{label} (process {process_id}) failed with exit status {exit_code.status}: {exit_code.message}"
        )


@contextmanager
def recording(profile: Profile) -> Iterator[Profile]:
    """Record the calcfunctions called in this block, in this thread, in that profile."""
    token = _recording.set(profile)
    try:
        yield profile
    finally:
        _recording.reset(token)


class CalcFunction:
    """A Python function whose calls are recorded: made by @gr.calcfunction.

        @gr.calcfunction
        def add(x: int, y: int) -> int:
            return x + y

        with gr.recording(profile):
            total = add(1, 2)          # a stored node; total.value == 3
        total = add.run(profile, x=1, y=2)

    The function gets plain values and returns plain values: a dict with text keys makes an output (and
    gives a node) per key, anything else is the output "result". It may return a gr.ExitCode.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self.__wrapped__ = function
        functools.update_wrapper(self, function)

    @functools.cached_property
    def _recipe(self) -> FunctionRecipe:
        return FunctionRecipe.of(self.__wrapped__)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        profile = _recording.get()
        if profile is None:
            name = self.__wrapped__.__name__
            raise GrangeError(
                f"{name} is a calcfunction, and there is no profile to record it in: call it inside "
                f"`with gr.recording(profile):`, or as {name}.run(profile, …)"
            )
        return self.run(profile, *args, **kwargs)

    def run(self, profile: Profile, *args: object, **kwargs: object) -> Any:
        """Call the function and record it.

        Returns the stored output node, or for a returned dict the nodes by name.

        Errors: InputInvalid before anything is stored; CalculationFailed for a returned exit code;
        what the function raises, after it is recorded as excepted.
        """
        recipe = self._recipe
        given = self._bound(args, kwargs)
        arguments = {
            name: make_argument(
                port_of(recipe.ports, name, recipe.label), name, value, f"{recipe.label}: {name}"
            )
            for name, value in given.items()
        }
        started_at = time.time()
        clock = time.perf_counter()
        outputs: Mapping[str, Data] = {}
        error: Exception | None = None
        exit_code: ExitCode | None = None
        returned: object = None
        try:
            returned = self.__wrapped__(**{name: argument.value for name, argument in arguments.items()})
            made = outputs_of_return(returned, recipe.label)
            if isinstance(made, ExitCode):
                exit_code = made
            else:
                outputs = made
        except Exception as raised:  # recorded, then raised again
            error = raised
        process_id = _record(
            profile, recipe, arguments, outputs, error, exit_code, started_at, time.perf_counter() - clock
        )
        if error is not None:
            raise error
        if exit_code is not None:
            raise CalculationFailed(recipe.label, exit_code, process_id)
        by_name = isinstance(returned, dict) and outputs.keys() == returned.keys()
        return dict(outputs) if by_name else outputs.get("result")

    def _bound(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        """What is given, by port; what comes by position goes to the ports in their order."""
        ports = self._recipe.ports
        label = self._recipe.label
        if len(args) > len(ports):
            raise InputInvalid(label, args, f"at most {len(ports)} inputs by position ({', '.join(ports)})")
        given = dict(zip(ports, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise InputInvalid(
                    f"{label}: {name}", value, "each input once; this one was given by position too"
                )
            given[name] = value
        ports.require(given, label)
        return given


def calcfunction(function: Callable[..., object]) -> CalcFunction:
    """Make a Python function one whose calls are recorded."""
    return CalcFunction(function)


def _record(
    profile: Profile,
    recipe: FunctionRecipe,
    arguments: Mapping[str, Argument],
    outputs: Mapping[str, Data],
    error: Exception | None,
    exit_code: ExitCode | None,
    started_at: float,
    wall_s: float,
) -> int:
    node = recipe.node_class(recipe.attributes, files=recipe.files, process_type=recipe.process_type)
    data = {id(item): item for argument in arguments.values() for item in argument.nodes.values()}
    links = [
        Link(item, node, LinkType.INPUT_CALC, label)
        for argument in arguments.values()
        for label, item in argument.nodes.items()
    ]
    links += [Link(node, item, LinkType.CREATE, label) for label, item in outputs.items()]
    new = [*(item for item in data.values() if item.id is None), node, *outputs.values()]
    with forgotten_on_error(new), profile.transaction() as cursor:
        store(
            cursor,
            new,
            links,
            user_id=profile.user_id,
            repository=profile.repository,
            index=profile.index(cursor),
            reader=profile.read_files,
        )
        assert node.id is not None
        rows.insert(
            cursor,
            [NewProcess(node.id, recipe.label, None, None, None, State.RUNNING, 1, None)],
        )
        state = State.EXCEPTED if error is not None else State.FINISHED
        message = (
            f"{type(error).__name__}: {error}"
            if error is not None
            else exit_code.message
            if exit_code
            else None
        )
        status = None if error is not None else exit_code.status if exit_code else 0
        rows.end(cursor, [rows.End(node.id, 1, state, status, message, started_at, wall_s, None, None, None)])
    return node.id
