"""Nodes and links as rows of the database, and rows as nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import grange.core.data  # noqa: F401  (makes the classes known that rows are loaded as)
from grange.core.content_hash import hash_of_content
from grange.core.database import escape
from grange.core.files import files_of, metadata_of
from grange.core.json_value import checked, checked_text, decoded, encoded, for_database
from grange.core.link import Link
from grange.core.node import Data, Node, Reader, class_of
from grange.repository.key import Key

NODE_COLUMNS = (
    *("id", "uuid", "kind", "user_id", "node_type", "process_type", "computer_id", "label", "description"),
    *("extras", "repository_metadata", "attributes", "hash"),
)
LINK_COLUMNS = ("source_id", "target_id", "type", "label")

#: What a loaded node is made of, in the order of node_of_row.
LOADED = """id, uuid::text, kind::text, node_type, process_type, label, description, attributes::text,
       extras::text, repository_metadata::text, ctime, mtime, user_id, computer_id, hash"""

#: How many rows are handed to the driver at once: few calls, and the server is not kept waiting.
_ROWS_A_BLOCK = 256
_NULL = b"\\N"
_PLAIN_MIDDLE = b"\\N\t\\N\t\t\t{}\t{}\t"


def node_lines(nodes: Sequence[Node], user_id: int) -> Iterator[bytes]:
    """Rows of nodes (NODE_COLUMNS) for COPY, many to an item. Ids, uuids and keys of files are there."""
    iterator = iter(nodes)
    heads: dict[type[Node], bytes] = {}
    hash_of = hashlib.sha256
    while block := list(islice(iterator, _ROWS_A_BLOCK)):
        lines = []
        for node in block:
            cls = type(node)
            head = heads.get(cls)
            if head is None:
                head = heads[cls] = f"\t{cls.kind.value}\t{user_id}\t{cls.node_type}\t".encode()
            text = encoded(node._attributes)
            if not isinstance(node, Data):
                digest = _NULL
            elif node._files:
                node._hash = hash_of_content(cls.node_type, text, cast("Mapping[str, Key]", node._files))
                digest = b"\\\\x" + node._hash.hex().encode()
            else:
                node._hash = hash_of(b"%b\0%b\0" % (cls.node_type.encode(), text)).digest()
                digest = b"\\\\x" + node._hash.hex().encode()
            text = for_database(text)
            if b"\\" in text:
                text = text.replace(b"\\", b"\\\\")
            middle = _PLAIN_MIDDLE if _is_plain(node) else _middle(node)
            lines.append(
                b"%d\t%b%b%b%b\t%b\n" % (node.id, node.uuid.encode(), head, middle, text, digest)  # type: ignore[union-attr, str-format]
            )
        yield b"".join(lines)


def _is_plain(node: Node) -> bool:
    """Whether a node has nothing but its attributes."""
    return not (
        node.label
        or node._files
        or node._extras
        or node.description
        or node._process_type is not None
        or node._computer_id is not None
    )


def _middle(node: Node) -> bytes:
    """The columns between node_type and attributes."""
    process_type = "\\N" if node._process_type is None else escape(node._process_type)
    computer = "\\N" if node._computer_id is None else str(node._computer_id)
    label = node.label and escape(node.label)
    description = node.description and escape(node.description)
    extras = escape(for_database(encoded(node._extras))) if node._extras else b"{}"
    files = escape(encoded(metadata_of(cast("Mapping[str, Key]", node._files)))) if node._files else b"{}"
    return f"{process_type}\t{computer}\t{label}\t{description}\t".encode() + extras + b"\t" + files + b"\t"


def check_texts(node: Node) -> None:
    """Check what may have been set since the node was made: label, description, extras.

    Errors: InputInvalid.
    """
    if node.label:
        checked_text(node.label, f"{node!r}: label")
    if node.description:
        checked_text(node.description, f"{node!r}: description")
    if node._extras:
        node._extras = checked(node._extras, f"{node!r}: extras")


def link_lines(links: Sequence[Link], sources: Sequence[int], targets: Sequence[int]) -> Iterator[str]:
    """Rows of links (LINK_COLUMNS) for COPY, many to an item; labels are checked already."""
    tails: dict[tuple[str, str], str] = {}
    for start in range(0, len(links), _ROWS_A_BLOCK):
        stop = start + _ROWS_A_BLOCK
        lines = []
        for link, source, target in zip(
            links[start:stop], sources[start:stop], targets[start:stop], strict=True
        ):
            kind = (link.type, link.label)
            tail = tails.get(kind)
            if tail is None:
                tail = tails[kind] = f"\t{link.type.value}\t{link.label}\n"
            lines.append(f"{source}\t{target}{tail}")
        yield "".join(lines)


def node_of_row(row: Sequence[Any], reader: Reader | None) -> Node:
    """The node of a row of LOADED."""
    node_id, uuid, kind, node_type, process_type, label, description, attributes, extras, files, *rest = row
    cls = class_of(node_type, kind)
    node = cls.__new__(cls)
    node._begin(decoded(attributes), label, description)
    node.id, node.uuid, node._process_type, node._reader = node_id, uuid, process_type, reader
    if extras != "{}":
        node._extras = decoded(extras)
    if files != "{}":
        node._files = files_of(decoded(files))
    node.ctime, node.mtime, node.user_id, node._computer_id, content_hash = rest
    node._hash = None if content_hash is None else bytes(content_hash)
    return node
