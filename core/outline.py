"""Outlines: in which order the steps of a WorkChain are taken."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from grange.core.errors import InputInvalid
from grange.core.exit_code import ExitCode

#: Takes the WorkChain; gives nothing, an exit code or status, or what the next step waits for (ToContext).
Step = Callable[[Any], Any]
#: Takes the WorkChain; says whether.
Condition = Callable[[Any], Any]


class Stop(Exception):
    """The outline ends here, with an exit status, an exit code, or well (None)."""

    def __init__(self, returned: int | ExitCode | None) -> None:
        self.returned = returned
        super().__init__()


class Instruction:
    """Part of an outline: gives the steps one by one, asking its conditions when it comes to them."""

    def steps(self, chain: Any) -> Iterator[Step]:
        """The steps that are to be taken, for this WorkChain, as it then is. Errors: Stop."""
        raise NotImplementedError

    def described(self) -> str:
        """The instruction as it is written."""
        raise NotImplementedError


class Outline(Instruction):
    """Instructions one after the other."""

    def __init__(self, instructions: tuple[Instruction | Step, ...]) -> None:
        """Errors: InputInvalid for what is no step."""
        self._instructions = tuple(
            one if isinstance(one, Instruction) else _Call(one) for one in instructions
        )

    def steps(self, chain: Any) -> Iterator[Step]:
        for instruction in self._instructions:
            yield from instruction.steps(chain)

    def described(self) -> str:
        return "\n".join(one.described() for one in self._instructions)


class _Call(Instruction):
    def __init__(self, step: Step) -> None:
        if isinstance(step, _Open):
            raise InputInvalid("outline", step, f"its steps: {step.word}(condition)(step, …)")
        _check_takes_one(step, "outline", "a step: a method of the class, which takes self alone")
        self._step = step

    def steps(self, chain: Any) -> Iterator[Step]:
        yield self._step

    def described(self) -> str:
        return name_of(self._step)


class _Open:
    """A condition that waits for its steps: if_(condition), while_(condition), .elif_(condition)."""

    def __init__(self, word: str, condition: Condition, close: Callable[[Condition, Outline], Any]) -> None:
        _check_takes_one(condition, word, "a condition: a method of the class, which takes self alone")
        self.word = word
        self._condition = condition
        self._close = close

    def __call__(self, *instructions: Instruction | Step) -> Any:
        """The steps to be taken if, or while, the condition holds."""
        if not instructions:
            raise InputInvalid(self.word, instructions, "at least one step")
        return self._close(self._condition, Outline(instructions))


class If(Instruction):
    """The steps of the first condition that holds: if_(a)(…).elif_(b)(…).else_(…)."""

    def __init__(self, branches: tuple[tuple[Condition | None, Outline], ...]) -> None:
        self._branches = branches

    def elif_(self, condition: Condition) -> _Open:
        """Otherwise, if this condition holds: its steps, in brackets behind it."""
        return _Open("elif_", condition, self._with)

    def else_(self, *instructions: Instruction | Step) -> If:
        """Otherwise these steps."""
        if not instructions:
            raise InputInvalid("else_", instructions, "at least one step")
        return self._with(None, Outline(instructions))

    def _with(self, condition: Condition | None, body: Outline) -> If:
        if self._branches[-1][0] is None:
            raise InputInvalid("outline", name_of(condition), "nothing behind else_(…)")
        return If((*self._branches, (condition, body)))

    def steps(self, chain: Any) -> Iterator[Step]:
        for condition, body in self._branches:
            if condition is None or condition(chain):
                yield from body.steps(chain)
                return

    def described(self) -> str:
        parts = []
        for place, (condition, body) in enumerate(self._branches):
            word = "if" if place == 0 else "elif"
            head = "else" if condition is None else f"{word} {name_of(condition)}"
            parts.append(f"{head}:\n{_indented(body.described())}")
        return "\n".join(parts)


class While(Instruction):
    """Steps that are taken again and again, as long as a condition holds."""

    def __init__(self, condition: Condition, body: Outline) -> None:
        self._condition = condition
        self._body = body

    def steps(self, chain: Any) -> Iterator[Step]:
        while self._condition(chain):
            empty = True
            for step in self._body.steps(chain):
                empty = False
                yield step
            if empty:  # the caller has to have its say in each round
                yield _nothing

    def described(self) -> str:
        return f"while {name_of(self._condition)}:\n{_indented(self._body.described())}"


class Return(Instruction):
    """Ends the WorkChain: return_, or return_(exit code)."""

    def __init__(self, returned: int | ExitCode | None = None) -> None:
        self._returned = returned

    def __call__(self, exit_code: int | ExitCode) -> Return:
        """Ends it with an exit code, or the status of one."""
        return Return(exit_code)

    def steps(self, chain: Any) -> Iterator[Step]:
        self._stop()
        yield  # makes it a generator, like the others

    def _stop(self) -> NoReturn:
        raise Stop(self._returned)

    def described(self) -> str:
        status = self._returned.status if isinstance(self._returned, ExitCode) else self._returned
        return "return" if status is None else f"return {status}"


def _nothing(chain: Any) -> None:
    """A step of a round in which no step is taken."""


def if_(condition: Condition) -> _Open:
    """Steps to be taken if a method of the class says so: if_(cls.wanted)(cls.step, …)."""
    return _Open("if_", condition, lambda condition, body: If(((condition, body),)))


def while_(condition: Condition) -> _Open:
    """Steps to be taken as long as a method of the class says so: while_(cls.goes_on)(cls.step, …)."""
    return _Open("while_", condition, While)


#: Ends the WorkChain: as a step, or called with an exit code.
return_ = Return()


def name_of(step: object) -> str:
    """The name of a step or a condition."""
    return getattr(step, "__name__", None) or type(step).__name__


def _check_takes_one(function: object, where: str, expected: str) -> None:
    if not callable(function):
        raise InputInvalid(where, function, expected)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None)
    except TypeError:
        raise InputInvalid(where, function, expected) from None


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())
