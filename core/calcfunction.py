"""Python functions that are recorded where they are called: one process, here and now."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grange.core import process as rows
from grange.core.caching import Caching, CachingRules, caching_of_call_here
from grange.core.call_binding import bound, recording_profile
from grange.core.calls import Argument, Calls, Fixed, key_of_call, make_argument
from grange.core.current_frame import current_frame, is_calculating
from grange.core.equal_rows import find_reusable
from grange.core.exit_code import ExitCode
from grange.core.function_recipe import FunctionRecipe, outputs_of_return
from grange.core.future import ProcessFailed
from grange.core.graph import clone_outputs, forgotten_on_error, load, store
from grange.core.link import Link, LinkType
from grange.core.node import Data, Node, ProcessNode
from grange.core.port import port_of
from grange.core.process import NewProcess
from grange.core.profile import Profile
from grange.core.raised import is_interrupt, said_by
from grange.core.recipe import invalidates_cache
from grange.core.transition import State
from grange.core.workflow_rows import read_outputs
from grange.farm.task import Resources


class CalculationFailed(ProcessFailed):
    """A calcfunction returned an exit code.

    exit_code: what it returned; process_id: its record.
    """

    def __init__(self, label: str, exit_code: ExitCode, process_id: int) -> None:
        self.exit_code = exit_code
        self.process_id = process_id
        self.told(
            exit_code.status,
            exit_code.message,
            f"{label} (process {process_id}) failed with exit status {exit_code.status}: {exit_code.message}",
        )


@dataclass(frozen=True, slots=True)
class Ran:
    """A call that has been run here, and what came of it. Units: seconds since the epoch, seconds.

    by_name: whether the function returned a dict. key: what equal calls have in common; None where it has
    nothing to do with them.
    """

    recipe: FunctionRecipe
    arguments: Mapping[str, Argument]
    outputs: Mapping[str, Data]
    by_name: bool
    error: BaseException | None
    exit_code: ExitCode | None
    started_at: float
    wall_s: float
    key: bytes | None = None

    @property
    def state(self) -> State:
        return State.EXCEPTED if self.error is not None else State.FINISHED

    @property
    def exit_status(self) -> int | None:
        if self.error is not None:
            return None
        return self.exit_code.status if self.exit_code else 0

    @property
    def message(self) -> str | None:
        if self.error is not None:
            return said_by(self.error)
        return self.exit_code.message if self.exit_code else None


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

    def __repr__(self) -> str:
        return f"<calcfunction {self.__wrapped__.__qualname__}>"

    @functools.cached_property
    def _recipe(self) -> FunctionRecipe:
        return FunctionRecipe.of(self.__wrapped__)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        if is_calculating():
            return self.__wrapped__(*args, **kwargs)
        frame = current_frame()
        if frame is not None:
            return frame.run_here(self, self._bound(args, kwargs))
        return self.run(recording_profile(self.__wrapped__.__name__, "calcfunction"), *args, **kwargs)

    def run(self, profile: Profile, *args: object, **kwargs: object) -> Any:
        """Call the function and record it.

        Returns the stored output node, or for a returned dict the nodes by name.

        Errors: InputInvalid before anything is stored; CalculationFailed for a returned exit code;
        what the function raises, after it is recorded as excepted.
        """
        arguments = self.arguments(self._bound(args, kwargs))
        caching = self.caching_of_call(profile.config.caching)
        if caching is Caching.SHARED:
            answer = _answered(profile, self._recipe, arguments, self.key(arguments))
            if answer is not None:
                return answer.get("result") if answer.keys() <= {"result"} else answer
        ran = self.ran(arguments, caching)
        process_id = _record(profile, ran)
        if ran.error is not None:
            raise ran.error
        if ran.exit_code is not None:
            raise CalculationFailed(ran.recipe.label, ran.exit_code, process_id)
        return dict(ran.outputs) if ran.by_name else ran.outputs.get("result")

    def caching_of_call(self, rules: CachingRules) -> Caching:
        """What a call that is made here is to equal ones."""
        declared = getattr(self, "caching", getattr(self.__wrapped__, "caching", None))
        return caching_of_call_here(rules, self.process_type, self.label, declared)

    def key(self, arguments: Mapping[str, Argument]) -> bytes:
        """What equal calls have in common."""
        return key_of_call(self._recipe.fingerprint, arguments)

    @property
    def label(self) -> str:
        """The name of the function."""
        return self._recipe.label

    @property
    def process_type(self) -> str:
        """Module and name of the function."""
        return self._recipe.process_type

    def arguments(self, given: Mapping[str, object]) -> dict[str, Argument]:
        """Inputs by port as data, plain values and hashes. Errors: InputInvalid, InputMissing."""
        recipe = self._recipe
        recipe.ports.require(given, recipe.label)
        return {
            name: make_argument(
                port_of(recipe.ports, name, recipe.label), name, value, f"{recipe.label}: {name}"
            )
            for name, value in given.items()
        }

    def calls(self, given: Mapping[str, object]) -> Calls:
        """The call with these inputs as one that the farm can run, and equal ones can answer."""
        return Calls(
            self._recipe,
            {name: Fixed(value) for name, value in given.items()},
            product=False,
            resources=Resources(),
            caching=Caching.SHARED,
        )

    def ran(self, arguments: Mapping[str, Argument], caching: Caching = Caching.FRESH) -> Ran:
        """Call the function here and now; nothing is recorded, and nothing that it raises comes out."""
        recipe = self._recipe
        started_at = time.time()
        clock = time.perf_counter()
        outputs: Mapping[str, Data] = {}
        error: BaseException | None = None
        exit_code: ExitCode | None = None
        returned: object = None
        try:
            returned = self.__wrapped__(**{name: argument.value for name, argument in arguments.items()})
            made = outputs_of_return(returned, recipe.label)
            if isinstance(made, ExitCode):
                exit_code = made
            else:
                outputs = made
        except BaseException as raised:  # recorded, and raised again where the call is answered
            if is_interrupt(raised):
                raise
            error = raised
        by_name = isinstance(returned, dict) and outputs.keys() == returned.keys()
        wall_s = time.perf_counter() - clock
        key = None if caching is Caching.PRIVATE else self.key(arguments)
        return Ran(recipe, arguments, outputs, by_name, error, exit_code, started_at, wall_s, key)

    def _bound(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        return bound(self._recipe.ports, self._recipe.label, args, kwargs)


def calcfunction(function: Callable[..., object]) -> CalcFunction:
    """Make a Python function one whose calls are recorded."""
    return CalcFunction(function)


def _record(profile: Profile, ran: Ran) -> int:
    node, new, links = _node_of(ran.recipe, ran.arguments)
    new += ran.outputs.values()
    links += [Link(node, item, LinkType.CREATE, label) for label, item in ran.outputs.items()]
    with forgotten_on_error(new), profile.transaction() as cursor:
        _store(profile, cursor, new, links)
        assert node.id is not None
        rows.insert(cursor, [row_of(ran, node.id)])
    return node.id


def _answered(
    profile: Profile, recipe: FunctionRecipe, arguments: Mapping[str, Argument], key: bytes
) -> dict[str, Data] | None:
    """Record a call as answered by an equal process; returns its outputs by name, None where there is none.

    Errors: CalculationFailed where the other one has failed.
    """
    node, new, links = _node_of(recipe, arguments)
    with forgotten_on_error(new), profile.transaction() as cursor:
        profile.index(cursor).hold()  # clones rely on the blobs of the other
        source = find_reusable(cursor, [key]).get(key)
        if source is None:
            return None
        _store(profile, cursor, new, links)
        assert node.id is not None
        row = NewProcess(node.id, recipe.label, key, None, None, State.FINISHED, 0, None)
        row.exit_status, row.exit_message, row.cached_from = (
            source.exit_status,
            source.exit_message,
            source.node_id,
        )
        rows.insert(cursor, [row])
        clone_outputs(cursor, [(source.node_id, node.id)], user_id=profile.user_id)
        labels = {output: label for _, label, output in read_outputs(cursor, [node.id])}
        outputs = load(cursor, list(labels), profile.read_files)
    if source.exit_status:
        code = ExitCode(source.exit_status, source.exit_message or "")
        raise CalculationFailed(recipe.label, code, node.id)
    return {labels[one.id]: one for one in outputs if isinstance(one, Data) and one.id is not None}


def _node_of(
    recipe: FunctionRecipe, arguments: Mapping[str, Argument]
) -> tuple[ProcessNode, list[Node], list[Link]]:
    """The node of a call, what is to be stored with it (itself last), and the links of its inputs."""
    node = recipe.node_class(recipe.attributes, files=recipe.files, process_type=recipe.process_type)
    data = {id(item): item for argument in arguments.values() for item in argument.nodes.values()}
    links = [
        Link(item, node, LinkType.INPUT_CALC, label)
        for argument in arguments.values()
        for label, item in argument.nodes.items()
    ]
    return node, [*(item for item in data.values() if item.id is None), node], links


def _store(profile: Profile, cursor: Any, new: Sequence[Node], links: Sequence[Link]) -> None:
    store(
        cursor,
        new,
        links,
        user_id=profile.user_id,
        repository=profile.repository,
        index=profile.index(cursor),
        reader=profile.read_files,
    )


def row_of(ran: Ran, node_id: int) -> NewProcess:
    """The row of a call that has been run here."""
    return NewProcess(
        node_id,
        ran.recipe.label,
        ran.key,
        None,
        None,
        ran.state,
        1,
        None,
        exit_status=ran.exit_status,
        exit_message=ran.message,
        started_at=ran.started_at,
        wall_s=ran.wall_s,
        valid_cache=ran.exit_code is None or not invalidates_cache(ran.exit_code),
    )
