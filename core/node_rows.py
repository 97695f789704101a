"""Nodes and links as rows of the database, and rows as nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, cast

import grange.core.data  # noqa: F401  (makes the classes known that rows are loaded as)
from grange.core.content_hash import hash_of_content
from grange.core.database import escape
from grange.core.files import Content, files_of, metadata_of
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
_PLAIN_MIDDLE = "\\N\t\\N\t\t\t{}\t{}\t"


def node_lines(nodes: Sequence[Node], user_id: int) -> Iterator[str]:
    """Rows of nodes (NODE_COLUMNS) for COPY, many to an item. Ids, uuids and keys of files are there."""
    heads: dict[type[Node], tuple[str, bytes]] = {}
    folders = _Folders()
    for start in range(0, len(nodes), _ROWS_A_BLOCK):
        lines = []
        for node in nodes[start : start + _ROWS_A_BLOCK]:
            try:
                head, hashed_type = heads[node.__class__]
            except KeyError:
                head, hashed_type = heads[node.__class__] = _head(node.__class__, user_id)
            text = encoded(node._attributes)
            if not hashed_type:
                digest = "\\N"
            else:
                if node._files or node._computer_id is not None:
                    node._hash = folders.hash_of(node, text)
                else:  # the same, without its detours
                    node._hash = sha256(hashed_type + text + b"\0").digest()
                digest = "\\\\x" + node._hash.hex()
            text = for_database(text)
            if b"\\" in text:
                text = text.replace(b"\\", b"\\\\")
            middle = _PLAIN_MIDDLE if _is_plain(node) else _middle(node, folders)
            lines.append(f"{node.id}\t{node.uuid}{head}{middle}{text.decode()}\t{digest}\n")
        yield "".join(lines)


def _head(cls: type[Node], user_id: int) -> tuple[str, bytes]:
    """The columns that all nodes of a class share, and what their hashes begin with (processes have none)."""
    hashed_type = cls.node_type.encode() + b"\0" if issubclass(cls, Data) else b""
    return f"\t{cls.kind.value}\t{user_id}\t{cls.node_type}\t", hashed_type


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


class _Folders(dict[tuple[tuple[str, Content], ...], str]):
    """The column repository_metadata by files: what many programs leave is the same few files."""

    def __init__(self) -> None:
        super().__init__()
        self._hashes: dict[tuple[str, tuple[tuple[str, Content], ...]], bytes] = {}

    def __missing__(self, files: tuple[tuple[str, Content], ...]) -> str:
        keys = cast("Mapping[str, Key]", dict(files))
        self[files] = text = escape(encoded(metadata_of(keys)).decode())
        return text

    def hash_of(self, node: Node, attributes: bytes) -> bytes:
        """The content hash of a node with files or a computer; attributes: as canonical JSON."""
        files = cast("Mapping[str, Key]", node._files)
        if attributes != b"{}" or node._computer_id is not None:
            return hash_of_content(node.node_type, attributes, files, node._computer_id)
        of = (node.node_type, tuple(node._files.items()))
        found = self._hashes.get(of)
        if found is None:
            found = self._hashes[of] = hash_of_content(node.node_type, attributes, files)
        return found


def _middle(node: Node, folders: _Folders) -> str:
    """The columns between node_type and attributes."""
    process_type = "\\N" if node._process_type is None else escape(node._process_type)
    computer = "\\N" if node._computer_id is None else str(node._computer_id)
    label = node.label and escape(node.label)
    description = node.description and escape(node.description)
    extras = escape(for_database(encoded(node._extras)).decode()) if node._extras else "{}"
    files = "{}"
    if node._files:
        files = folders[tuple(node._files.items())]
    return f"{process_type}\t{computer}\t{label}\t{description}\t{extras}\t{files}\t"


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
    tails = _Tails()
    for start in range(0, len(links), _ROWS_A_BLOCK):
        stop = start + _ROWS_A_BLOCK
        block = zip(links[start:stop], sources[start:stop], targets[start:stop], strict=True)
        yield "".join([f"{source}\t{target}{tails[link.type, link.label]}" for link, source, target in block])


class _Tails(dict[tuple[str, str], str]):
    """What rows of links end with, by type and label; there are few of them."""

    def __missing__(self, key: tuple[str, str]) -> str:
        self[key] = tail = f"\t{key[0]}\t{key[1]}\n"
        return tail


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
