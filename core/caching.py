"""Caching: whether equal calculations answer each other. Who wants what, and who has the last word.

From the strongest on: what a call itself says (cache=True or False); the innermost `with enable_caching()` or
`with disable_caching()` that means it; the most telling pattern of [caching] in profile.toml; the attribute
`caching` of its class or function; the default in profile.toml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, TypeGuard

from grange.core.errors import InputInvalid

#: The attribute of a workflow's node that holds the blocks that it was called in.
CACHING_ATTRIBUTE = "caching"


class Caching(Enum):
    """What equal calculations are to each other.

    SHARED: one that was equal and finished answers, one that is under way is waited for.
    FRESH: it is computed whatever there is, and answers others later: what a block or profile.toml says.
    PRIVATE: it has nothing to do with any other: what its class or the call itself says, as where chance has
    a part in the result.
    """

    SHARED = "shared"
    FRESH = "fresh"
    PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class CachingRules:
    """What profile.toml says of caching.

    enabled, disabled: process types (module.name, as `grange process show` tells), or names of functions,
    classes and jobs; * stands for anything. Of several that fit, the one with the most letters beside its
    stars wins, and disabled where there are two of these.
    """

    default: bool = True
    enabled: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()

    def of(self, process_type: str, label: str) -> bool | None:
        """What the patterns say of a process; None where none fits."""
        found = [
            (len(pattern.replace("*", "")), wanted)
            for patterns, wanted in ((self.disabled, False), (self.enabled, True))
            for pattern in patterns
            if fits(pattern, process_type, label)
        ]
        return max(found, key=lambda one: one[0])[1] if found else None


@dataclass(frozen=True, slots=True)
class CachingBlock:
    """A `with enable_caching(…)` or `with disable_caching(…)`. identifier: a pattern, "" for everything."""

    wanted: bool
    identifier: str = ""


_blocks: ContextVar[tuple[CachingBlock, ...]] = ContextVar("grange_caching", default=())


@contextmanager
def enable_caching(identifier: str | None = None) -> Iterator[None]:
    """Let equal calculations answer what is called in this block.

        with gr.enable_caching("*.Energy"):
            gr.submit(Energy, structure=structure)

    identifier: a process type or name, * for anything; None means all but what its own class or function
    has excepted. It holds for the maps, submits and calls in the block, in this thread, and for all that
    workflows which are submitted there call, wherever they are run.

    Errors: InputInvalid for what is no such pattern.
    """
    with _within(CachingBlock(True, _checked(identifier, "enable_caching"))):
        yield


@contextmanager
def disable_caching(identifier: str | None = None) -> Iterator[None]:
    """Compute what is called in this block, whatever there is already.

        with gr.disable_caching():
            campaign.map(energy, structure=structures)

    identifier: a process type or name, * for anything; None means all. What is computed here may answer
    others later. It holds for the maps, submits and calls in the block, in this thread, and for all that
    workflows which are submitted there call, wherever they are run. What a campaign has recorded itself it is
    not asked to compute again: `cache=False` makes a call that is none of these.

    Errors: InputInvalid for what is no such pattern.
    """
    with _within(CachingBlock(False, _checked(identifier, "disable_caching"))):
        yield


@contextmanager
def _within(block: CachingBlock) -> Iterator[None]:
    token = _blocks.set((*_blocks.get(), block))
    try:
        yield
    finally:
        _blocks.reset(token)


def caching_of(
    rules: CachingRules, process_type: str, label: str, *, declared: bool = True, wanted: bool | None = None
) -> Caching:
    """What a call is to equal ones.

    declared: what its class or function says; wanted: what the call itself says, None for nothing.
    """
    if wanted is not None:
        return Caching.SHARED if wanted else Caching.PRIVATE
    for block in reversed(_blocks.get()):
        if block.identifier:
            if not fits(block.identifier, process_type, label):
                continue
        elif block.wanted and not declared:
            continue  # it has been excepted by name, and is not meant by "all"
        return Caching.SHARED if block.wanted else Caching.FRESH
    by_name = rules.of(process_type, label)
    if by_name is not None:
        return Caching.SHARED if by_name else Caching.FRESH
    if not declared:
        return Caching.PRIVATE
    return Caching.SHARED if rules.default else Caching.FRESH


def caching_of_call_here(
    rules: CachingRules, process_type: str, label: str, declared: bool | None
) -> Caching:
    """What a call of a calcfunction is to equal ones: it runs where it is called.

    To ask for an equal one costs what most of them cost. So nothing answers but where somebody wants it: a
    block, a pattern of profile.toml, or the function itself. They all may answer others.
    """
    if declared is not None:
        rules = CachingRules(declared, rules.enabled, rules.disabled)
        return caching_of(rules, process_type, label, declared=declared)
    return caching_of(CachingRules(False, rules.enabled, rules.disabled), process_type, label)


def declared_caching(code: object) -> bool:
    """What a function, class or job says of itself: its attribute `caching`."""
    return bool(getattr(code, "caching", True))


# -- of workflows: what was wanted where it was submitted holds where it is run --------------------------


def recorded_blocks() -> dict[str, Any]:
    """The blocks around this line, as attributes of the node of a workflow that is called here."""
    blocks = _blocks.get()
    if not blocks:
        return {}
    return {CACHING_ATTRIBUTE: [[block.wanted, block.identifier] for block in blocks]}


def enter_recorded(attributes: Mapping[str, Any]) -> None:
    """Be in the blocks that a workflow's node tells of, in this context, and in no others."""
    found: Sequence[Sequence[Any]] = attributes.get(CACHING_ATTRIBUTE) or ()
    _blocks.set(tuple(CachingBlock(bool(wanted), str(identifier)) for wanted, identifier in found))


# -- patterns ----------------------------------------------------------------------------------------------


def fits(pattern: str, process_type: str, label: str) -> bool:
    """Whether a pattern means a process: by its whole type, or by its name."""
    expression = _compiled(pattern)
    return expression.fullmatch(process_type) is not None or expression.fullmatch(label) is not None


@lru_cache(1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def _checked(identifier: str | None, where: str) -> str:
    if identifier is None:
        return ""
    if not is_pattern(identifier):
        raise InputInvalid(where, identifier, PATTERN)
    return identifier


#: What a pattern is, for messages.
PATTERN = "a process type (module.name) or a name, with * for anything"


def is_pattern(value: object) -> TypeGuard[str]:
    """Whether a value can be a pattern."""
    return isinstance(value, str) and bool(value) and value.isprintable() and value == value.strip()
