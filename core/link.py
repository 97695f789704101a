"""Links: what goes from node to node, and the rules that they keep."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache

from grange.core.errors import LinkInvalid
from grange.core.node import Kind, Node, NodeRef


class LinkType(StrEnum):
    """What a link says; the values are the database's."""

    INPUT_CALC = "input_calc"
    INPUT_WORK = "input_work"
    CREATE = "create"
    RETURN = "return"
    CALL_CALC = "call_calc"
    CALL_WORK = "call_work"


#: One end of a link: a node, a stored node of which only id and kind are known, or no more than its id.
End = Node | NodeRef | int


class Link:
    """A directed, labelled edge: source → target. Inputs and outputs point the way that data flows."""

    __slots__ = ("label", "source", "target", "type")

    def __init__(self, source: End, target: End, type: LinkType, label: str) -> None:  # noqa: A002
        self.source = source
        self.target = target
        self.type = type
        self.label = label

    def __repr__(self) -> str:
        return f"Link({self.source!r} → {self.target!r}, {self.type}, {self.label!r})"


#: Which kinds each type of link may go between.
KINDS: dict[LinkType, tuple[Kind, Kind]] = {
    LinkType.INPUT_CALC: (Kind.DATA, Kind.CALCULATION),
    LinkType.INPUT_WORK: (Kind.DATA, Kind.WORKFLOW),
    LinkType.CREATE: (Kind.CALCULATION, Kind.DATA),
    LinkType.RETURN: (Kind.WORKFLOW, Kind.DATA),
    LinkType.CALL_CALC: (Kind.WORKFLOW, Kind.CALCULATION),
    LinkType.CALL_WORK: (Kind.WORKFLOW, Kind.WORKFLOW),
}
#: Links of these types make data provenance and the tree of calls: no circles, as ids grow along them.
ACYCLIC = frozenset({LinkType.INPUT_CALC, LinkType.CREATE, LinkType.CALL_CALC, LinkType.CALL_WORK})

_INPUTS = (LinkType.INPUT_CALC, LinkType.INPUT_WORK)
_OUTPUTS = (LinkType.CREATE, LinkType.RETURN)
_CALLS = (LinkType.CALL_CALC, LinkType.CALL_WORK)
_LABEL = re.compile(r"[A-Za-z](?:[A-Za-z0-9_]*[A-Za-z0-9])?", re.ASCII)


#: Characters of a label, as in AiiDA; the database has them in an index.
LABEL_LIMIT = 255


@lru_cache(maxsize=4096)
def is_label(label: str) -> bool:
    """Whether a text can label a link: ASCII letters, digits, underscores, not too many; none of the last at
    an end."""
    return isinstance(label, str) and len(label) <= LABEL_LIMIT and _LABEL.fullmatch(label) is not None


def check(links: Iterable[Link]) -> None:
    """Check everything that can be known without the database: kinds, labels, and what has to be unique.

    Errors: LinkInvalid for the first link that breaks a rule.
    """
    groups: dict[tuple[LinkType, str], list[Link]] = {}
    for link in links:
        key = (link.type, link.label)
        try:
            groups[key].append(link)
        except KeyError:
            groups[key] = [link]
    for (link_type, label), same in groups.items():
        _check_label(label, same[0])
        sources = {link.source for link in same}
        targets = {link.target for link in same}
        _check_kinds(link_type, same, sources, targets)
        if link_type in _INPUTS and len(targets) != len(same):
            twice = _first_repeated(same, [link.target for link in same])
            raise LinkInvalid(f"{twice!r}: a process has one input of each label")
        if link_type in _OUTPUTS and len(sources) != len(same):
            twice = _first_repeated(same, [link.source for link in same])
            raise LinkInvalid(f"{twice!r}: a process has one output of each label")
    _check_unique_targets(groups, (LinkType.CREATE,), "a data node is created by one calculation")
    _check_unique_targets(groups, _CALLS, "a process is called by one workflow")


def _check_label(label: str, link: Link) -> None:
    if not is_label(label):
        raise LinkInvalid(
            f"{link!r}: a label is made of ASCII letters, digits and underscores; "
            f"it begins with a letter, does not end in an underscore, has at most {LABEL_LIMIT} characters"
        )


def _check_kinds(link_type: LinkType, links: Sequence[Link], sources: set[End], targets: set[End]) -> None:
    try:
        source_kind, target_kind = KINDS[link_type]
    except KeyError:
        raise LinkInvalid(f"{links[0]!r}: no type of link; there are {', '.join(LinkType)}") from None
    if _all_of(sources, source_kind) and _all_of(targets, target_kind):
        return
    for link in links:
        if not _all_of({link.source}, source_kind) or not _all_of({link.target}, target_kind):
            raise LinkInvalid(f"{link!r}: a link {link_type} goes from {source_kind} to {target_kind}")


def _all_of(ends: set[End], kind: Kind) -> bool:
    """Whether all ends are of a kind, as far as it is known. Looks at each class of nodes once."""
    for cls in set(map(type, ends)):
        if issubclass(cls, Node):
            if cls.kind is not kind:
                return False
        elif cls is NodeRef and any(end.kind is not kind for end in ends if isinstance(end, NodeRef)):
            return False
    return True


def _check_unique_targets(
    groups: Mapping[tuple[LinkType, str], list[Link]], types: tuple[LinkType, ...], rule: str
) -> None:
    links = [link for (link_type, _), same in groups.items() if link_type in types for link in same]
    if len({link.target for link in links}) != len(links):
        twice = _first_repeated(links, [link.target for link in links])
        raise LinkInvalid(f"{twice!r}: {rule}")


def _first_repeated(links: Sequence[Link], keys: Sequence[object]) -> Link:
    seen = set()
    for link, key in zip(links, keys, strict=True):
        if key in seen:
            return link
        seen.add(key)
    raise AssertionError("no key is repeated")
