"""Calls of workflows, and submitted processes, on their way into the record: thousands in one transaction."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grange.core import process as rows
from grange.core.caching import Caching
from grange.core.calcfunction import Ran, row_of
from grange.core.calls import Argument, Call, Calls
from grange.core.equal_rows import Source, find_failed_before, find_reusable
from grange.core.future import Future
from grange.core.graph import clone_outputs, forget, forgotten_on_error, store
from grange.core.json_value import checked, encoded
from grange.core.link import Link, LinkType
from grange.core.node import Data, Node, NodeRef, ProcessNode
from grange.core.process import NewProcess
from grange.core.profile import Profile
from grange.core.recipe import Draft
from grange.core.recording import draft_or_reason
from grange.core.transition import ENDED, State
from grange.core.workflow_recipe import Given, WorkflowRecipe


@dataclass(slots=True)
class WorkflowCall:
    """A call of a workflow. attributes: of the process's node beside those of the recipe."""

    recipe: WorkflowRecipe
    given: Given
    attributes: Mapping[str, Any]


@dataclass(slots=True)
class FarmCall:
    """A call that the farm is to run, the queue for it, and the computer of that."""

    calls: Calls
    call: Call
    queue_id: int
    computer_id: int | None
    draft: Draft | str | None = None

    @property
    def shared(self) -> bool:
        """Whether equal calls may answer it."""
        return self.calls.caching is Caching.SHARED


@dataclass(slots=True)
class PendingCall:
    """A call that is to be recorded: of a workflow, for the farm, or one that has been run here.

    parent_id, sequence: the workflow that makes it, and the number of the call there. campaign_id, ordinal,
    key: of a workflow that a campaign has mapped. node and row: what it
    becomes; made anew each time that recording is tried.
    """

    what: WorkflowCall | FarmCall | Ran
    future: Future
    label: str
    call_hash: bytes
    parent_id: int | None = None
    sequence: int | None = None
    link_label: str = "CALL"
    campaign_id: int | None = None
    ordinal: int | None = None
    key: bytes | None = None
    node: ProcessNode | None = None
    row: NewProcess | None = None

    @property
    def is_open(self) -> bool:
        """Whether, now that it is recorded, somebody has to run it."""
        assert self.row is not None
        return self.row.state not in ENDED


def hash_of_call(process_type: str, inputs: Mapping[str, bytes], more: Mapping[str, Any] = {}) -> bytes:
    """What tells a call from others: 16 bytes of SHA-256, of what is called and the hashes of its inputs."""
    digest = hashlib.sha256(process_type.encode())
    for name in sorted(inputs):
        digest.update(b"\0" + name.encode() + b"\0" + inputs[name])
    if more:
        digest.update(b"\0\0" + encoded(checked(more, "attributes")))
    return digest.digest()[:16]


def hash_of_arguments(process_type: str, arguments: Mapping[str, Argument]) -> bytes:
    """The hash of a call with these arguments."""
    return hash_of_call(process_type, {name: argument.hash for name, argument in arguments.items()})


def hash_of_given(process_type: str, given: Given) -> bytes:
    """The hash of a call of a workflow."""
    hashes = {name: node.content_hash() for name, node in given.nodes.items()}
    return hash_of_call(process_type, hashes, given.attributes)


@dataclass(slots=True)
class Writing:
    """What recording calls adds to a transaction: nodes, links and rows; `news` is what is to be told."""

    nodes: list[Node] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    clones: list[tuple[int, int]] = field(default_factory=list)
    news: set[str] = field(default_factory=set)


def prepare(pending: Sequence[PendingCall]) -> None:
    """Let the user's code make calls for the farm ready (prepare()), before the transaction."""
    for one in pending:
        if isinstance(one.what, FarmCall) and one.what.draft is None:
            one.what.draft = draft_or_reason(one.what.calls.recipe, one.what.call.values())


def record(
    profile: Profile,
    cursor: Any,
    pending: Sequence[PendingCall],
    *,
    owner: int | None = None,
    links: Sequence[Link] = (),
) -> Writing:
    """Record calls, in the transaction of a cursor; what they become is at `node` and `row` of each.

    owner: the worker that is to run the workflows among them; None: whoever claims them. links: more links
    that go in with these. Where the transaction fails later, forget(writing.nodes).
    Errors: those of graph.store.
    """
    writing = Writing()
    inputs: dict[int, Data] = {}
    outputs: list[Node] = []
    nodes: list[Node] = []
    new_links: list[Link] = list(links)
    for one in pending:
        node, given, made = _node_of(one)
        one.node = node
        nodes.append(node)
        is_work = node.kind.value == "workflow"
        for data in given.values():
            if data.id is None:
                inputs[id(data)] = data
        input_type = LinkType.INPUT_WORK if is_work else LinkType.INPUT_CALC
        new_links += [Link(data, node, input_type, label) for label, data in given.items()]
        if one.parent_id is not None:
            call_type = LinkType.CALL_WORK if is_work else LinkType.CALL_CALC
            new_links.append(Link(NodeRef.workflow(one.parent_id), node, call_type, one.link_label))
        outputs += made.values()
        new_links += [Link(node, data, LinkType.CREATE, label) for label, data in made.items()]
    writing.nodes = [*inputs.values(), *nodes, *outputs]
    writing.links = new_links
    asking = [
        (one.parent_id, one.what.call.key)
        for one in pending
        if isinstance(one.what, FarmCall) and one.what.shared and isinstance(one.what.draft, Draft)
    ]
    sources = find_reusable(cursor, {key for _, key in asking})
    again = find_failed_before(cursor, sources, asking)
    with forgotten_on_error(writing.nodes):
        store(
            cursor,
            writing.nodes,
            new_links,
            user_id=profile.user_id,
            repository=profile.repository,
            index=profile.index(cursor),
            reader=profile.read_files,
        )
        for one in pending:
            is_tried_again = isinstance(one.what, FarmCall) and (one.parent_id, one.what.call.key) in again
            one.row = _row_of(one, {} if is_tried_again else sources, owner)
            one.row.parent_id = one.parent_id
            one.row.sequence = one.sequence
            one.row.call_hash = one.call_hash
            one.row.campaign_id = one.campaign_id
            one.row.ordinal = one.ordinal
            if one.row.workflow:
                one.row.key, one.row.queue_id = one.key, one.campaign_id
            if one.row.cached_from is not None:
                writing.clones.append((one.row.cached_from, one.row.node_id))
            elif one.row.ready:
                writing.news.add(rows.READY_NEWS)
            elif one.row.queue_id is not None and one.is_open:
                writing.news.add(rows.queue_news(one.row.queue_id))
        rows.insert(cursor, [one.row for one in pending if one.row is not None])
        if writing.clones:
            profile.index(cursor).hold()  # they rely on the blobs of the others
            clone_outputs(cursor, writing.clones, user_id=profile.user_id)
    return writing


def _node_of(one: PendingCall) -> tuple[ProcessNode, Mapping[str, Data], Mapping[str, Data]]:
    """The node of a call, its inputs and, where it has been run, its outputs."""
    what = one.what
    if isinstance(what, WorkflowCall):
        attributes = checked(
            {**what.recipe.attributes, **what.given.attributes, **what.attributes}, one.label
        )
        return (
            what.recipe.node_class.from_checked(
                attributes, label=one.label, files=what.recipe.files, process_type=what.recipe.process_type
            ),
            what.given.nodes,
            {},
        )
    if isinstance(what, Ran):
        recipe = what.recipe
        node = recipe.node_class.from_checked(
            checked(recipe.attributes, "attributes"),
            label=one.label,
            files=recipe.files,
            process_type=recipe.process_type,
        )
        return node, nodes_of(what.arguments), what.outputs
    recipe_ = what.calls.recipe
    attributes, files = dict(what.calls.attributes), dict(recipe_.files)
    if isinstance(what.draft, Draft):
        attributes.update(what.draft.attributes)
        files.update(what.draft.files)
    made = recipe_.node_class.from_checked(
        checked(attributes, "attributes"), label=one.label, files=files, process_type=recipe_.process_type
    )
    made.computer_id = what.computer_id
    return made, nodes_of(what.call.arguments), {}


def nodes_of(arguments: Mapping[str, Argument]) -> dict[str, Data]:
    """All data of a call, by link label."""
    return {label: node for argument in arguments.values() for label, node in argument.nodes.items()}


def _row_of(one: PendingCall, sources: Mapping[bytes, Source], owner: int | None) -> NewProcess:
    what = one.what
    node_id = one.node.id if one.node is not None else None
    assert node_id is not None
    if isinstance(what, Ran):
        return row_of(what, node_id)
    if isinstance(what, WorkflowCall):
        new = NewProcess(node_id, what.recipe.label, None, None, None, State.CREATED, 0, None, workflow=True)
        if owner is None:
            new.ready = True
        else:
            new.state, new.attempt, new.worker_id, new.started_at = State.RUNNING, 1, owner, time.time()
        return new
    recipe = what.calls.recipe
    new = NewProcess(
        node_id,
        recipe.label,
        what.call.key,
        None,
        None,
        State.CREATED,
        0,
        None,
        queue_id=what.queue_id,
        use_cache=what.shared,
    )
    if isinstance(what.draft, str):
        new.state, new.exit_message = State.EXCEPTED, what.draft
    elif (source := sources.get(what.call.key)) is not None and what.shared:
        new.state, new.cached_from = State.FINISHED, source.node_id
        new.exit_status, new.exit_message = source.exit_status, source.exit_message
    return new


def record_now(profile: Profile, pending: Sequence[PendingCall], *, owner: int | None = None) -> None:
    """Record calls in one transaction, and tell those who are to run them."""
    prepare(pending)
    new: list[Node] = []
    try:
        with profile.transaction() if owner is None else profile.transaction_as(owner) as cursor:
            writing = record(profile, cursor, pending, owner=owner)
            new = writing.nodes
            rows.tell(cursor, writing.news)
    except BaseException:
        forget(new)
        raise
    for one in pending:
        assert one.row is not None
        one.future.named(one.row.node_id)
        if not one.is_open:
            one.future.settle(one.row.state, one.row.exit_status, one.row.exit_message)
