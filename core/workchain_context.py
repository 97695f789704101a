"""What a WorkChain waits for before its next step: ToContext and append_."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grange.core.attribute_dict import AttributeDict
from grange.core.errors import InputInvalid
from grange.core.future import Future


class ToContext(dict[str, Any]):
    """What a step returns to have the next one wait: ToContext(energy=self.submit(…)).

    When that has ended, well or not, it is self.ctx.energy. A list of what was submitted is waited for as a
    whole; append_(…) adds to a list in ctx; "a.b" is b in the dict ctx.a.
    """


@dataclass(frozen=True, slots=True)
class Append:
    """To be added to a list in ctx: made by append_."""

    future: Future


def append_(future: Future) -> Append:
    """Add to a list in ctx: ToContext(children=append_(self.submit(…)))."""
    return Append(future)


def put_into(ctx: AttributeDict, key: str, value: object, where: str) -> list[Future]:
    """Put what was submitted into ctx, at once and in its order; returns what is to be waited for.

    Errors: InputInvalid for what was not submitted, or a key where something else is.
    """
    *above, last = key.split(".")
    level: Any = ctx
    for part in above:
        level = level.setdefault(part, AttributeDict())
        if not isinstance(level, dict):
            raise InputInvalid(f"{where}: {key}", level, f"nothing, or a dict, at ctx.{part}")
    if isinstance(value, Append):
        futures = _futures(value.future, key, where)
        children = level.setdefault(last, [])
        if not isinstance(children, list):
            raise InputInvalid(f"{where}: {key}", children, "nothing, or a list, to append to")
        children.append(value.future)
        return futures
    futures = _futures(value, key, where)
    level[last] = list(futures) if not isinstance(value, Future) else value
    return futures


def _futures(value: object, key: str, where: str) -> list[Future]:
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for one in several:
        if not isinstance(one, Future):
            raise InputInvalid(f"{where}: {key}", one, "what self.submit(…) has returned, or a list of such")
    return list(several)
