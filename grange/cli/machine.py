"""Output for machines: one JSON document, or one a line. Keys keep their meaning; times are ISO 8601."""

from __future__ import annotations

from collections.abc import Iterable

import click


def emit(document: object) -> None:
    """One JSON document, indented; dataclasses, times and uuids are written as they are known to JSON."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def emit_lines(documents: Iterable[object]) -> None:
    """One JSON document a line (NDJSON): what is long is read as it comes."""
    import msgspec

    encode = msgspec.json.encode
    for document in documents:
        click.echo(encode(document))
