"""Futures: processes that were submitted, and what comes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from grange.core.errors import GrangeError
from grange.core.transition import ENDED, State

if TYPE_CHECKING:
    from grange.core.node import Data, ProcessNode


class ProcessFailed(GrangeError):
    """A process that was waited for did not finish with exit status 0.

    future: the process; exit_status: None where it excepted or was killed.
    """

    future: Future | None = None
    exit_status: int | None
    exit_message: str | None

    def __init__(self, future: Future) -> None:
        self.future = future
        self.told(future.exit_status, future.exit_message, future.said())

    def told(self, exit_status: int | None, exit_message: str | None, said: str) -> None:
        """Set what is known of the end."""
        self.exit_status = exit_status
        self.exit_message = exit_message
        self.args = (said,)


class Waiter(Protocol):
    """Who can wait for processes: the frame of a workflow, or a client with its connection."""

    def wait_for(self, futures: Sequence[Future], timeout_s: float | None, any_of_them: bool) -> bool:
        """Until all (or one) have ended; whether they have. Sets what became of them."""
        ...

    def name(self, futures: Sequence[Future]) -> None:
        """See to it that these futures have ids: their calls are recorded."""
        ...

    def load_outputs(self, futures: Sequence[Future]) -> None:
        """Set the outputs of these futures, which have ended."""
        ...

    def kill(self, futures: Sequence[Future]) -> None:
        """Ask for these processes to be ended."""
        ...


class Future:
    """A process that was submitted.

        future = gr.submit(energy, structure=structure)
        future.result()          # what it gave: a node, or a dict of nodes; ProcessFailed if it failed
        future.outputs.energy    # outputs by name, whether it went well or not
        future.exit_status

    In a workflow waiting costs nothing but a row. The names of properties are those of AiiDA's process nodes.
    """

    __slots__ = (
        "_id",
        "_node_class",
        "_outputs",
        "_state",
        "_waiter",
        "exit_message",
        "exit_status",
        "process_label",
    )

    def __init__(
        self,
        waiter: Waiter,
        process_label: str,
        process_id: int | None = None,
        node_class: type[ProcessNode] | None = None,
    ) -> None:
        self._waiter = waiter
        self._id = process_id
        self._node_class = node_class
        self._state = State.CREATED
        self._outputs: Outputs | None = None
        self.process_label = process_label
        #: Set when it has ended: None where it excepted or was killed.
        self.exit_status: int | None = None
        self.exit_message: str | None = None

    def __repr__(self) -> str:
        name = self.process_label if self._id is None else f"{self.process_label}, process {self._id}"
        return f"<Future of {name}: {self._state}>"

    @property
    def id(self) -> int:
        """The id of the process's node."""
        if self._id is None:
            self._waiter.name([self])
        assert self._id is not None
        return self._id

    @property
    def pk(self) -> int:
        """The same, as AiiDA calls it."""
        return self.id

    # -- how it stands

    @property
    def state(self) -> State:
        """The state as it was last seen; wait(timeout_s=0) looks."""
        return self._state

    process_state = state

    @property
    def is_terminated(self) -> bool:
        """Whether it is known to have ended."""
        return self._state in ENDED

    @property
    def is_finished(self) -> bool:
        """Whether it is known to have finished, with whatever exit status."""
        return self._state is State.FINISHED

    @property
    def is_finished_ok(self) -> bool:
        """Whether it is known to have finished with exit status 0."""
        return self._state is State.FINISHED and self.exit_status == 0

    @property
    def is_failed(self) -> bool:
        """Whether it is known to have finished with another exit status than 0."""
        return self._state is State.FINISHED and self.exit_status != 0

    @property
    def is_excepted(self) -> bool:
        """Whether it is known to have ended in an exception."""
        return self._state is State.EXCEPTED

    @property
    def is_killed(self) -> bool:
        """Whether it is known to have been killed."""
        return self._state is State.KILLED

    def said(self) -> str:
        """How it ended, in words."""
        name = f"{self.process_label} (process {self._id})"
        message = f": {self.exit_message}" if self.exit_message else ""
        if self._state is State.FINISHED:
            if self.exit_status:
                return f"{name} failed with exit status {self.exit_status}{message}"
            return f"{name} finished well"
        if self._state is State.EXCEPTED:
            return f"{name} excepted{message}"
        if self._state is State.KILLED:
            return f"{name} was killed{message}"
        return f"{name} is {self._state}"

    # -- waiting

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it has ended, well or not. Units: seconds. Returns whether it has."""
        return self.is_terminated or self._waiter.wait_for([self], timeout_s, False)

    def done(self) -> bool:
        """Whether it has ended, looked at now."""
        return self.wait(0.0)

    def result(self, timeout_s: float | None = None) -> Any:
        """What it gave, once it has ended.

        Of a function what it returned: a node, or a dict of nodes by name; what it printed is not among them
        (outputs.retrieved). Of a WorkChain or a program always a dict of all outputs.

        Errors: ProcessFailed; TimeoutError after timeout_s seconds.
        """
        from grange.core.node import CalcFunctionNode, CalcJobNode, WorkChainNode

        if not self.wait(timeout_s):
            raise TimeoutError(f"{self.said()} after {timeout_s} s")
        if not self.is_finished_ok:
            raise ProcessFailed(self)
        outputs = dict(self.outputs.items())
        if self._node_class in (CalcJobNode, WorkChainNode):
            return outputs
        if self._node_class is CalcFunctionNode:
            outputs.pop("retrieved", None)
        return outputs["result"] if list(outputs) == ["result"] else outputs

    @property
    def outputs(self) -> Outputs:
        """What it has given, by name: future.outputs.energy or ["energy"]. Waits for its end."""
        self.wait()
        if self._outputs is None:
            self._waiter.load_outputs([self])
        assert self._outputs is not None
        return self._outputs

    def kill(self) -> None:
        """Ask for it to be ended, with all that it has called; wait() waits until it is."""
        self._waiter.kill([self])

    # -- for waiters

    @property
    def waiter(self) -> Waiter:
        """Who waits for it."""
        return self._waiter

    def settle(self, state: State, exit_status: int | None, exit_message: str | None) -> None:
        """Note what became of it; an end stays."""
        if self._state not in ENDED:
            self._state, self.exit_status, self.exit_message = state, exit_status, exit_message

    def give(self, outputs: Mapping[str, Data]) -> None:
        """Set its outputs, by link label."""
        from grange.core.port import unflatten

        self._outputs = Outputs(unflatten(outputs))

    def named(self, process_id: int) -> None:
        """Set the id of its process."""
        self._id = process_id

    def unnamed(self) -> None:
        """Take the id back: its process could not be recorded yet."""
        self._id = None

    @property
    def has_outputs(self) -> bool:
        """Whether its outputs are loaded."""
        return self._outputs is not None


class Outputs(Mapping[str, Any]):
    """The outputs of a process by name, as a mapping and as attributes; namespaces are mappings inside."""

    __slots__ = ("_by_name",)

    def __init__(self, by_name: Mapping[str, Any]) -> None:
        self._by_name = {
            name: Outputs(value) if isinstance(value, dict) else value for name, value in by_name.items()
        }

    def __getitem__(self, name: str) -> Any:
        return self._by_name[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._by_name[name]
        except KeyError:
            there = ", ".join(self._by_name) or "none"
            raise AttributeError(f"there is no output {name!r}; there are: {there}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __dir__(self) -> list[str]:
        return list(self._by_name)

    def __repr__(self) -> str:
        return f"Outputs({', '.join(self._by_name)})"
