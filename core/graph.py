"""The graph: storing and loading nodes and links, many at once, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import lt
from pathlib import Path
from typing import TYPE_CHECKING, cast

from grange.core.database import copy_rows, reserve_ids_and_time, translated, uuid7s
from grange.core.errors import InputInvalid, LinkInvalid, NotFound
from grange.core.files import check_files
from grange.core.json_value import encoded, for_database
from grange.core.link import ACYCLIC, End, Link, check
from grange.core.node import Data, Node, Reader
from grange.core.node_rows import (
    LINK_COLUMNS,
    LOADED,
    NODE_COLUMNS,
    check_texts,
    link_lines,
    node_lines,
    node_of_row,
)
from grange.repository.errors import BlobMissing
from grange.repository.index import BlobLocation, Index
from grange.repository.key import Key
from grange.repository.repository import Repository

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

# Nodes by id.
_BY_ID = f"SELECT {LOADED} FROM node WHERE id = ANY (%s::bigint[])"  # noqa: S608

# For each pair of uuids the nodes between them: two are enough to see that a beginning is not unique.
_BY_UUID = f"""
SELECT given.number, found.* FROM unnest(%s::uuid[], %s::uuid[]) WITH ORDINALITY AS given (low, high, number)
CROSS JOIN LATERAL (SELECT {LOADED} FROM node WHERE uuid BETWEEN low AND high ORDER BY uuid LIMIT 2) found
"""  # noqa: S608

# What may change of stored nodes.
_UPDATE = """
UPDATE node SET label = new.label, description = new.description, extras = new.extras, mtime = now()
FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::jsonb[]) AS new (id, label, description, extras)
WHERE node.id = new.id RETURNING node.id, node.mtime
"""

#: Data that is one node in a campaign however often its script is started; the index node_shared is of these.
SHARED_TYPES = (
    "data.core.structure.StructureData.",
    "data.core.array.ArrayData.",
    "data.core.singlefile.SinglefileData.",
    "data.core.code.installed.InstalledCode.",
    "data.core.code.portable.PortableCode.",
    "data.core.code.containerized.ContainerizedCode.",
)

# Of each content one data node that is an input of some process of a campaign.
_INPUTS = f"""
SELECT DISTINCT ON (hash) {LOADED} FROM node
WHERE hash = ANY (%s::bytea[]) AND node_type IN {SHARED_TYPES} AND EXISTS (
    SELECT FROM link JOIN process ON process.node_id = link.target_id
    WHERE link.source_id = node.id AND link.type IN ('input_calc', 'input_work') AND process.campaign_id = %s)
ORDER BY hash, id
"""  # noqa: S608

# For pairs of calculations (one that has outputs, one that has none): copies of the outputs for the other.
_CLONE = """
WITH output AS MATERIALIZED (
    SELECT pair.clone_id, link.label AS link_label, node.*, nextval('node_id') AS new_id
    FROM unnest(%(sources)s::bigint[], %(clones)s::bigint[]) AS pair (source_id, clone_id)
    JOIN link ON link.source_id = pair.source_id AND link.type = 'create'
    JOIN node ON node.id = link.target_id
), copied AS (
    INSERT INTO node (id, uuid, kind, user_id, computer_id, node_type, label, description, attributes,
                      repository_metadata, hash)
    SELECT new_id, gen_random_uuid(), kind, %(user)s, computer_id, node_type, label, description, attributes,
           repository_metadata, hash FROM output
)
INSERT INTO link (source_id, target_id, type, label) SELECT clone_id, new_id, 'create', link_label FROM output
"""


def store(
    cursor: Cursor,
    nodes: Iterable[Node],
    links: Iterable[Link] = (),
    *,
    user_id: int,
    repository: Repository,
    index: Index,
    reader: Reader | None = None,
    known: Collection[Key] = (),
) -> None:
    """Store nodes and links: everything is checked first, then comes one pack, then two COPYs.

    Ids grow in the order given: inputs before the calculations that take them, these before their
    outputs. Nodes that are stored already are left alone; links may begin or end at them. The keys among
    a node's files must be in the index; known: keys that the caller has seen there since index.hold().
    A reader lets the nodes read large files again.

    When this raises, the nodes are as they were; roll back. When the transaction is rolled back later,
    `forget` them, or store within `forgotten_on_error`.

    Errors: LinkInvalid, InputInvalid; BlobMissing for keys that are not in the index; those of
    Repository.put; those of database.translate.
    """
    new = [node for node in dict.fromkeys(nodes) if node.id is None]
    links = links if isinstance(links, list) else list(links)
    check(links)
    for node in new:
        if node.label or node._extras or node.description:
            check_texts(node)
        if node._files:
            check_files(node._files, "files" if not node.label else f"files of {node.label}")
    if not new and not links:
        return
    if any(node._files for node in new):
        # Before the nodes have ids: pruning looks again at nodes with higher ids than it has seen, once
        # nobody holds the index.
        index.hold()
    try:
        _name(cursor, new, user_id)
        sources, targets = _ids_of_ends(links)
        rows = _put_files(new, repository, index, reader, known)
        with translated():
            if new:
                copy_rows(cursor, "node", NODE_COLUMNS, node_lines(new, user_id))
            if links:
                copy_rows(cursor, "link", LINK_COLUMNS, link_lines(links, sources, targets))
        if rows:
            index.add(rows)
    except BaseException:
        forget(new)
        raise


def forget(nodes: Iterable[Node]) -> None:
    """Make nodes unstored again, after the transaction that stored them was rolled back."""
    for node in nodes:
        node.id = node.uuid = node.user_id = node.ctime = node.mtime = node._reader = node._hash = None
        if node._contents:
            node._files = {**node._files, **node._contents}
            node._contents = None


@contextmanager
def forgotten_on_error(nodes: Sequence[Node]) -> Iterator[None]:
    """Put around a transaction: when it ends in an error, what it stored of these nodes is forgotten."""
    new = [node for node in nodes if node.id is None]
    try:
        yield
    except BaseException:
        forget(new)
        raise


def _name(cursor: Cursor, nodes: Sequence[Node], user_id: int) -> None:
    """Give nodes what makes them stored ones."""
    if not nodes:
        return
    with translated():
        ids, now = reserve_ids_and_time(cursor, len(nodes))
    for node, node_id, uuid in zip(nodes, ids, uuid7s(len(nodes)), strict=True):
        node.id = node_id
        node.uuid = uuid
        node.user_id = user_id
        node.ctime = node.mtime = now


def _ids_of_ends(links: Sequence[Link]) -> tuple[list[int], list[int]]:
    """The ids of both ends of each link.

    Errors: LinkInvalid for an end that is neither stored nor given, or for a link against the order of ids.
    """
    try:
        sources = [link.source.id for link in links]  # type: ignore[union-attr]
        targets = [link.target.id for link in links]  # type: ignore[union-attr]
    except AttributeError:  # some ends are nothing but ids
        sources = [_id_of(link.source) for link in links]
        targets = [_id_of(link.target) for link in links]
    if None in sources or None in targets:
        wrong = next(
            link
            for link, source, target in zip(links, sources, targets, strict=True)
            if source is None or target is None
        )
        raise LinkInvalid(f"{wrong!r}: store both ends before, or give them in the same call")
    ids = cast("tuple[list[int], list[int]]", (sources, targets))
    if not all(map(lt, *ids)):
        for link, source, target in zip(links, *ids, strict=True):
            if source >= target and link.type in ACYCLIC:
                raise LinkInvalid(
                    f"{link!r}: inputs have to be stored before what takes them, calculations before "
                    "what they create, callers before what they call; give the nodes in that order"
                )
    return ids


def _id_of(end: End) -> int | None:
    return end if isinstance(end, int) else end.id


def _put_files(
    nodes: Sequence[Node],
    repository: Repository,
    index: Index,
    reader: Reader | None,
    known: Collection[Key],
) -> Mapping[Key, BlobLocation]:
    """Put all files of all nodes into the repository; afterwards the nodes have keys.

    Many processes share one content (their function's source): the same object is hashed once.
    Errors: BlobMissing for keys that are not in the index.
    """
    with_files = [node for node in nodes if node._files]
    if not with_files:
        return {}
    contents: dict[int, bytes | Path] = {}
    given: set[Key] = set()
    for node in with_files:
        for content in node._files.values():
            if isinstance(content, bytes | Path):
                contents.setdefault(id(content), content)
            elif content not in known:
                given.add(content)
    if given and (missing := given - index.find(given).keys()):
        raise BlobMissing(sorted(missing))
    keys, rows = repository.put(list(contents.values()), index) if contents else ([], {})
    key_of = dict(zip(contents, keys, strict=True))
    for node in with_files:
        node._reader = reader
        own = {path: content for path, content in node._files.items() if isinstance(content, bytes | Path)}
        if own:
            node._contents = own
            node._files = {
                path: key_of.get(id(content), cast("Key", content)) for path, content in node._files.items()
            }
    return rows


def update(cursor: Cursor, nodes: Sequence[Node]) -> None:
    """Write label, description and extras of stored nodes: what may change of them.

    Errors: InputInvalid; NotFound for nodes that are not stored, or not any more.
    """
    for node in nodes:
        check_texts(node)
    with translated():
        cursor.execute(
            _UPDATE,
            (
                [node.id for node in nodes],
                [node.label for node in nodes],
                [node.description for node in nodes],
                [for_database(encoded(node.extras)).decode() for node in nodes],
            ),
        )
        written = dict(cursor.fetchall())
    missing = [repr(node) for node in nodes if node.id not in written]
    if missing:
        raise NotFound(f"not in the database: {_some(missing)}")
    for node in nodes:
        node.mtime = written[node.id]


def load(cursor: Cursor, ids: Sequence[int], reader: Reader | None = None) -> list[Node]:
    """Nodes by id, in the same order, in one query. reader: what they read their files with.

    Errors: NotFound names the ids that are no nodes.
    """
    if not ids:
        return []
    with translated():
        cursor.execute(_BY_ID, (list(ids),))
        found = {row[0]: node_of_row(row, reader) for row in cursor.fetchall()}
    missing = [str(node_id) for node_id in dict.fromkeys(ids) if node_id not in found]
    if missing:
        raise NotFound(f"no node has the id {_some(missing)}")
    return [found[node_id] for node_id in ids]


def computers_of(cursor: Cursor, ids: Collection[int]) -> list[tuple[int, int]]:
    """The computers that these nodes belong to, those that belong to one: (id, computer)."""
    cursor.execute(
        "SELECT id, computer_id FROM node WHERE id = ANY(%s) AND computer_id IS NOT NULL", (list(ids),)
    )
    return cast("list[tuple[int, int]]", cursor.fetchall())


def load_by_uuid(cursor: Cursor, uuids: Sequence[str], reader: Reader | None = None) -> list[Node]:
    """Nodes by uuid, or by how a uuid begins where that is unique; in the same order, in one query.

    Errors: NotFound names those that are no node's; InputInvalid for one that is no uuid or not unique.
    """
    if not uuids:
        return []
    digits = [uuid.replace("-", "").lower() for uuid in uuids]
    for uuid, given in zip(uuids, digits, strict=True):
        if not given or len(given) > 32 or not set(given) <= set("0123456789abcdef"):
            raise InputInvalid("uuid", uuid, "a uuid, or how one begins")
    with translated():
        cursor.execute(
            _BY_UUID, ([given.ljust(32, "0") for given in digits], [given.ljust(32, "f") for given in digits])
        )
        found: dict[int, Node] = {}
        for number, *row in cursor.fetchall():
            if number in found:
                raise InputInvalid("uuid", uuids[number - 1], "more of the uuid: several nodes begin so")
            found[number] = node_of_row(row, reader)
    missing = [uuid for number, uuid in enumerate(uuids, 1) if number not in found]
    if missing:
        raise NotFound(f"no node has a uuid that begins with {_some(missing)}")
    return [found[number] for number in range(1, len(uuids) + 1)]


def prefetch(nodes: Iterable[Node]) -> None:
    """Read the files of many loaded nodes at once; their values are then there without further reading.

    Errors: those of the repository.
    """
    by_reader: dict[Reader, list[Node]] = {}
    for node in nodes:
        if node._files and node._reader is not None and node._contents is None:
            by_reader.setdefault(node._reader, []).append(node)
    for reader, waiting in by_reader.items():
        keys = list(dict.fromkeys(cast("Key", key) for node in waiting for key in node._files.values()))
        contents = dict(zip(keys, reader(keys), strict=True))
        for node in waiting:
            node._contents = {path: contents[cast("Key", key)] for path, key in node._files.items()}


def find_inputs(
    cursor: Cursor, campaign_id: int, hashes: Collection[bytes], reader: Reader | None = None
) -> dict[bytes, Data]:
    """Data nodes of these contents, of SHARED_TYPES, that are inputs of a campaign's processes; by hash."""
    if not hashes:
        return {}
    with translated():
        cursor.execute(_INPUTS, (list(hashes), campaign_id))
        found = [node_of_row(row, reader) for row in cursor.fetchall()]
    return {node.content_hash(): node for node in found if isinstance(node, Data)}


def clone_outputs(cursor: Cursor, pairs: Sequence[tuple[int, int]], *, user_id: int) -> None:
    """Give calculations copies of the outputs of others: (the one that has them, the one that gets them)."""
    if not pairs:
        return
    with translated():
        cursor.execute(
            _CLONE,
            {"sources": [pair[0] for pair in pairs], "clones": [pair[1] for pair in pairs], "user": user_id},
        )


def _some(names: Sequence[str]) -> str:
    """A list that stays readable however long it is."""
    shown = ", ".join(names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown
