"""Results as data frames: one row a call, inputs and outputs as columns.

Two statements read a whole frame: the processes, and their links with the values at the other end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grange.core.data.array import Array
from grange.core.formula import formula
from grange.core.graph import load, prefetch
from grange.core.node import Data
from grange.core.port import unflatten
from grange.core.profile import Profile, open_profile
from grange.core.transition import State

if TYPE_CHECKING:
    import dask.dataframe
    import pandas

#: Data that is no result by itself: what was retrieved, and the programs that ran.
HIDDEN_TYPES = ("data.core.folder.", "data.core.code.")
#: Columns that tell of the process; an input or output of such a name gets "_in" or "_out" behind it.
OWN_COLUMNS = frozenset({"process", "label", "state", "exit_status", "exit_message"})
#: Processes per partition of a lazy frame: about 100 ms of reading, as Dask wants it.
PARTITION_ROWS = 10_000
#: Processes of each function or class that tell the columns of a lazy frame and their types.
SAMPLE_ROWS = 50

# The processes of a campaign, or those of a list, with how they ended.
_PROCESSES = """
SELECT p.node_id, p.state::text, p.exit_status, p.exit_message, n.label
FROM process p JOIN node n ON n.id = p.node_id
WHERE {which} ORDER BY {order}
"""

# What links processes with data: the process, the label, the data, and whether it is an input.
_LINKS = """
SELECT target_id, label, source_id, true FROM link
WHERE target_id = ANY(%(ids)s) AND type IN ('input_calc', 'input_work')
UNION ALL
SELECT source_id, label, target_id, false FROM link
WHERE source_id = ANY(%(ids)s) AND type IN ('create', 'return')
"""

# Of data, what its value is made of; what stands at many links is read once.
_DATA = "SELECT id, node_type, attributes FROM node WHERE id = ANY(%s)"


def results(
    profile: Profile,
    cursor: Any,
    campaign_id: int,
    ids: Sequence[int] | None,
    *,
    nodes: bool = False,
    promised: Sequence[str] = (),
) -> pandas.DataFrame:
    """The frame of a campaign, or of these of its processes, in the order given (repeats repeat).

    An id of 0 is a call that has no process yet. promised: outputs that are columns in any case.
    """
    if ids is None:
        which, order = "p.campaign_id = %(campaign)s AND p.superseded_by IS NULL", "p.ordinal, p.node_id"
    else:
        which, order = "p.node_id = ANY(%(wanted)s)", "p.node_id"
    cursor.execute(
        _PROCESSES.format(which=which, order=order),
        {"campaign": campaign_id, "wanted": list(set(ids or ()))},
    )
    frame = _frame(profile, cursor, cursor.fetchall(), nodes=nodes, promised=promised)
    if ids is None or frame["process"].tolist() == list(ids):
        return frame
    if 0 in ids:
        frame = frame.astype(_nullable(frame))
    frame = frame.set_index("process").reindex(list(ids)).reset_index()
    if 0 in ids:
        unrecorded = frame["process"] == 0
        frame["process"] = frame["process"].astype("Int64").mask(unrecorded)
        frame["state"] = frame["state"].mask(unrecorded, State.CREATED.value)
    return frame


def _frame(
    profile: Profile,
    cursor: Any,
    processes: Sequence[tuple[Any, ...]],
    *,
    nodes: bool = False,
    promised: Sequence[str] = (),
) -> pandas.DataFrame:
    import pandas

    ids = [row[0] for row in processes]
    cursor.execute(_LINKS, {"ids": ids})
    links = cursor.fetchall()
    data_ids = list({link[2] for link in links})
    cell_of = _nodes(profile, cursor, data_ids) if nodes else _values(profile, cursor, data_ids)
    place = {process_id: row for row, process_id in enumerate(ids)}
    inputs: dict[str, list[Any]] = {}
    outputs: dict[str, list[Any]] = {name: [None] * len(ids) for name in promised}
    for process_id, label, data_id, is_input in links:
        if data_id not in cell_of:
            continue
        columns = inputs if is_input else outputs
        column = columns.get(label)
        if column is None:
            column = columns[label] = [None] * len(ids)
        column[place[process_id]] = cell_of[data_id]
    data: dict[str, Any] = {"process": ids}
    if any(row[4] for row in processes):
        data["label"] = [row[4] for row in processes]
    spaces = _closed_namespaces(inputs)
    for label, column in spaces.items():
        data[label if label not in OWN_COLUMNS else f"{label}_in"] = _typed(column)
    for label, column in outputs.items():
        data[label if label not in data and label not in OWN_COLUMNS else f"{label}_out"] = _typed(column)
    data["state"] = [row[1] for row in processes]
    data["exit_status"] = pandas.array([row[2] for row in processes], dtype="Int64")
    data["exit_message"] = [row[3] for row in processes]
    return pandas.DataFrame(data)


def _typed(column: list[Any]) -> Any:
    """A column in which whole numbers and truth values stay what they are where cells are missing."""
    kinds = set(map(type, column))
    if kinds == {int, type(None)} or kinds == {bool, type(None)}:
        import pandas

        try:
            return pandas.array(column, dtype="Int64" if int in kinds else "boolean")
        except OverflowError:
            return pandas.Series(column, dtype=object)
    return column


def _nullable(frame: pandas.DataFrame) -> dict[str, str]:
    """The types of columns of whole numbers and truth values in which cells may be missing."""
    kinds = {"int64": "Int64", "bool": "boolean"}
    return {
        str(name): kinds[str(kind)]
        for name, kind in frame.dtypes.items()
        if str(kind) in kinds and name != "process"
    }


def _closed_namespaces(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns by port: those of a namespace (points__0, points__1 …) become one, of lists or dicts."""
    closed: dict[str, list[Any]] = {}
    spaces: dict[str, list[str]] = {}
    for label in sorted(columns, key=lambda label: (label.split("__")[0], len(label), label)):
        if "__" in label:
            spaces.setdefault(label.split("__")[0], []).append(label)
            closed.setdefault(label.split("__")[0], [])
        else:
            closed[label] = columns[label]
    for port, labels in spaces.items():
        for cells in zip(*(columns[label] for label in labels), strict=True):
            given = {label: cell for label, cell in zip(labels, cells, strict=True) if cell is not None}
            closed[port].append(unflatten(given)[port] if given else None)
    return closed


def _nodes(profile: Profile, cursor: Any, ids: Sequence[int]) -> dict[int, Any]:
    """The data nodes themselves, their files to be read when they are asked for."""
    return {
        node.id: node
        for node in load(cursor, ids, reader=profile.read_files)
        if node.id is not None and not node.node_type.startswith(HIDDEN_TYPES)
    }


def _values(profile: Profile, cursor: Any, ids: Sequence[int]) -> dict[int, Any]:
    """A cell for each data node: the plain value where it fits in a cell; arrays are read in one go."""
    cursor.execute(_DATA, (list(ids),))
    cells: dict[int, Any] = {}
    arrays: list[int] = []
    for node_id, node_type, attributes in cursor.fetchall():
        cell = _CELLS.get(node_type)
        if cell is not None:
            cells[node_id] = cell(attributes)
        elif node_type == Array.node_type:
            arrays.append(node_id)
        elif not node_type.startswith(HIDDEN_TYPES):
            cells[node_id] = attributes.get("value", attributes)
    if arrays:
        loaded = load(cursor, arrays, reader=profile.read_files)
        prefetch(loaded)
        cells.update(
            (node.id, node.value) for node in loaded if isinstance(node, Data) and node.id is not None
        )
    return cells


_CELLS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "data.core.int.Int.": lambda attributes: attributes["value"],
    "data.core.float.Float.": lambda attributes: float(attributes["value"]),
    "data.core.str.Str.": lambda attributes: attributes["value"],
    "data.core.bool.Bool.": lambda attributes: attributes["value"],
    "data.core.list.List.": lambda attributes: attributes["list"],
    "data.core.dict.Dict.": lambda attributes: attributes,
    "data.core.structure.StructureData.": formula,
    "data.core.none.NoneData.": lambda _: None,
    "data.core.singlefile.SinglefileData.": lambda attributes: attributes["filename"],
    "data.core.remote.RemoteData.": lambda attributes: attributes["remote_path"],
}


# ---------------------------------------------------------------- lazy


def lazy_results(profile: Profile, campaign_id: int, ids: Sequence[int] | None) -> dask.dataframe.DataFrame:
    """The frame of a campaign as a Dask dataframe: each partition reads its processes when computed.

    The index is the process id, and the divisions are known, so that Dask can select by it. The
    columns and their types are those of the first processes that have ended.
    """
    try:
        from dask.dataframe import from_map
    except ImportError:
        raise ModuleNotFoundError("lazy results need Dask: pip install 'grange[dask]'") from None

    with profile.transaction() as cursor:
        if ids is None:
            cursor.execute(
                "SELECT node_id FROM process WHERE campaign_id = %s AND superseded_by IS NULL"
                " ORDER BY node_id",
                (campaign_id,),
            )
            wanted = [row[0] for row in cursor.fetchall()]
        else:
            wanted = sorted(set(ids))
        cursor.execute(
            _PROCESSES.format(which="p.node_id = ANY(%(wanted)s)", order="p.node_id"),
            {"wanted": _sample(cursor, wanted)},
        )
        meta = _frame(profile, cursor, cursor.fetchall()).set_index("process")
        meta = meta.astype(_nullable(meta))
    parts = [wanted[start : start + PARTITION_ROWS] for start in range(0, len(wanted), PARTITION_ROWS)] or [
        []
    ]
    divisions = [part[0] for part in parts if part] + [wanted[-1]] if wanted else None
    frame: dask.dataframe.DataFrame = from_map(  # type: ignore[no-untyped-call]
        _Partition(
            str(profile.home),
            list(map(str, meta.columns)),
            {str(name): str(kind) for name, kind in meta.dtypes.items()},
        ),
        parts,
        meta=meta.iloc[:0],
        divisions=divisions,
        label="grange",
    )
    return frame


def _sample(cursor: Any, ids: Sequence[int]) -> list[int]:
    """The first processes of each function or class, if possible such as ended well."""
    cursor.execute(
        """
        SELECT node_id FROM (
            SELECT node_id, row_number() OVER (
                PARTITION BY label ORDER BY (exit_status = 0) DESC NULLS LAST, node_id) AS place
            FROM process WHERE node_id = ANY(%s)) AS placed
        WHERE place <= %s
        """,
        (list(ids), SAMPLE_ROWS),
    )
    return [row[0] for row in cursor.fetchall()]


class _Partition:
    """Reads one partition, wherever Dask runs it; what travels is the profile's place, never a secret."""

    def __init__(self, home: str, columns: Sequence[str], types: Mapping[str, str]) -> None:
        self._home = Path(home)
        self._columns = columns
        self._types = types

    def __call__(self, ids: Sequence[int]) -> pandas.DataFrame:
        with open_profile(self._home) as profile, profile.transaction() as cursor:
            cursor.execute(
                _PROCESSES.format(which="p.node_id = ANY(%(wanted)s)", order="p.node_id"),
                {"wanted": list(ids)},
            )
            frame = _frame(profile, cursor, cursor.fetchall()).set_index("process")
        for column in self._columns:
            if column not in frame:
                frame[column] = None
        frame = frame[self._columns]
        for column, kind in self._types.items():
            # A function may return a number here and a text there: such a column is what it is.
            with contextlib.suppress(TypeError, ValueError):
                frame = frame.astype({column: kind})
        return frame
