"""Intake locks as everybody does: rows of processes first, blobs last (on real locks)."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import grange as gr
from grange.core import process as rows
from grange.core.data.folder import Folder
from grange.core.database import transaction
from grange.core.graph import store
from grange.core.intake import Intake, Opened
from grange.core.link import Link, LinkType
from grange.core.node import CalcFunctionNode, WorkflowNode
from grange.core.output_files import OutputFiles
from grange.core.process import NewProcess
from grange.core.profile import Profile, open_profile
from grange.core.queues import Queues
from grange.core.recipe import Conclusion, succeeded
from grange.core.transition import State
from grange.farm.result import ResultPack, TaskResult
from grange.repository import PackWriter, key_of

PATIENCE_S = 60.0
CONTENT = b"what the workflow stores, too" * 99


class Retrieves:
    """As much of a recipe as intake asks for: the files are the output."""

    parses = False

    def conclude(self, result: TaskResult, values: object, files: OutputFiles) -> Conclusion:
        return succeeded({"retrieved": Folder.of_keys(result.files)})


def called(profile: Profile) -> tuple[int, int]:
    """A workflow that is being run, and a calculation that it has called: their ids."""
    workflow, calculation = WorkflowNode({}), CalcFunctionNode({})
    queue = Queues(profile).id_of(None)
    with profile.transaction() as cursor:
        store(
            cursor,
            [workflow, calculation],
            [Link(workflow, calculation, LinkType.CALL_CALC, "CALL")],
            user_id=profile.user_id,
            repository=profile.repository,
            index=profile.index(cursor),
        )
        assert workflow.id is not None
        assert calculation.id is not None
        parent = NewProcess(workflow.id, "w", None, None, None, State.RUNNING, 1, None, workflow=True)
        child = NewProcess(calculation.id, "f", None, None, None, State.WAITING, 1, None, queue_id=queue)
        child.parent_id, child.sequence = workflow.id, 1
        rows.insert(cursor, [parent, child])
        cursor.execute("UPDATE process SET open_children = 1 WHERE node_id = %s", (workflow.id,))
    return workflow.id, calculation.id


def delivered(folder: Path, process_id: int) -> ResultPack:
    """A result pack, as a runner delivers it, with one file."""
    writer = PackWriter("")
    writer.add(key_of(CONTENT), CONTENT)
    path = folder / "result-1.zip"
    path.write_bytes(writer.finish())
    result = TaskResult(
        str(process_id), 1, "finished", 0, None, "", {}, {"out.txt": key_of(CONTENT)},
        time.time(), 1.0, 1.0, 1.0, "here",
    )  # fmt: skip
    return ResultPack(path, (result,), 1)


def test_a_worker_that_stores_what_a_result_brings_waits_for_nobody_who_waits_for_it(
    profile: Profile, tmp_path: Path
) -> None:
    parent, child = called(profile)
    pack = delivered(tmp_path, child)
    opened = {str(child): Opened(child, 1, Retrieves(), {}, 1, parent)}  # type: ignore[arg-type]
    errors: list[BaseException] = []
    with open_profile(profile.home) as other:

        def take_in() -> None:
            try:
                queue = Queues(other).id_of(None)
                assert Intake(other, queue).record([pack], opened) == {str(child): True}
            except BaseException as error:
                errors.append(error)

        backend = other.connection.info.backend_pid
        thread = threading.Thread(target=take_in)
        with profile.transaction() as cursor:
            rows.lock(cursor, [parent])  # as a worker does before it writes what its workflows have done
            thread.start()
            watching = profile.connect()
            deadline = time.monotonic() + PATIENCE_S
            while not _waits(watching, backend):
                assert not errors
                assert time.monotonic() < deadline
                time.sleep(0.02)
            watching.close()
            file = gr.SingleFile(CONTENT, "in.txt")
            store(
                cursor,
                [file],
                user_id=profile.user_id,
                repository=profile.repository,
                index=profile.index(cursor),
            )
        thread.join(PATIENCE_S)
    assert errors == []
    with profile.transaction() as cursor:
        cursor.execute("SELECT state::text, open_children, ready FROM process ORDER BY node_id")
        assert cursor.fetchall() == [("running", 0, True), ("finished", 0, False)]


def _waits(connection: object, backend: int) -> bool:
    with transaction(connection) as cursor:  # type: ignore[arg-type]
        cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (backend,))
        return bool((cursor.fetchone() or (False,))[0])
