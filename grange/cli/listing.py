"""Lists that go on: the newest first, so many at a time, and how many more there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import click

from grange.core.overview import MORE_COUNTED, NEWEST

#: Rows that --all reads at once.
_PAGE = 5_000

DEFAULT_LIMIT = 20


class _Identified(Protocol):
    @property
    def id(self) -> int: ...


_R = TypeVar("_R", bound=_Identified)


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options --limit, --all and --json, which all lists have."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON document a line."),
        click.option("--all", "everything", is_flag=True, help="No limit."),
        click.option(
            "-n", "--limit", type=click.IntRange(min=1), default=DEFAULT_LIMIT, show_default=True,
            help="Show so many, the newest.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def pages(fetch: Callable[[int, int], list[_R]], limit: int | None) -> Iterator[_R]:
    """The rows of fetch(limit, before), page after page: never all of a million at once."""
    before = NEWEST
    while limit is None or limit > 0:
        asked = _PAGE if limit is None else min(limit, _PAGE)
        rows = fetch(asked, before)
        yield from rows
        if len(rows) < asked:
            return
        before = rows[-1].id
        limit = None if limit is None else limit - len(rows)


def say_more(count: int, noun: str, nouns: str) -> None:
    """How many rows were not shown, on standard error, where it is in nobody's way."""
    if count:
        shown = f"more than {count:,}" if count >= MORE_COUNTED else f"{count:,}"
        words = noun if count == 1 else nouns
        click.echo(f"{shown} more {words}; --limit N or --all shows them", err=True)
