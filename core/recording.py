"""Recording calls: what has an answer gets it, what has none becomes a process about to run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grange.core import process as rows
from grange.core.caching import Caching
from grange.core.calls import Call, Calls
from grange.core.equal_rows import Source, find_leaders, find_reusable, lock_keys
from grange.core.errors import GrangeError
from grange.core.following import sort_out
from grange.core.graph import SHARED_TYPES, clone_outputs, find_inputs, forget, store
from grange.core.json_value import checked
from grange.core.link import Link, LinkType
from grange.core.node import Data, Node
from grange.core.process import NewProcess
from grange.core.profile import Profile
from grange.core.queues import lock_recording, mark_submitted
from grange.core.raised import is_interrupt, place_of, said_by
from grange.core.recipe import Draft, Recipe
from grange.core.transition import ENDED, ProcessStatus, State, Submitted, step


@dataclass(slots=True)
class ToRun:
    """A recorded process that is to be submitted.

    calls: how many calls of this run it answers. parent_id: the workflow that called it.
    """

    process_id: int
    attempt: int
    draft: Draft
    values: Mapping[str, object]
    calls: int
    parent_id: int | None = None


@dataclass(slots=True)
class Recorded:
    """What recording a slice of calls came to.

    places: the process that answers each call, in order. awaited: process → how many of the calls it
    answers, for those that an earlier slice has recorded and that have not ended. following: the same, for
    those that wait for an equal process which is under way elsewhere.
    """

    places: list[int]
    to_run: list[ToRun] = field(default_factory=list)
    answered: int = 0
    refused: int = 0
    failed: int = 0
    awaited: dict[int, int] = field(default_factory=dict)
    following: dict[int, int] = field(default_factory=dict)


def record_calls(
    profile: Profile,
    campaign_id: int,
    calls: Calls,
    slice_: Sequence[Call],
    *,
    submit: bool = True,
    computer_id: int | None = None,
) -> Recorded:
    """Record a slice of calls in one transaction of its own.

    A call that the campaign has recorded is answered by that; one that an equal process elsewhere has
    answered becomes a finished process with clones of its outputs; the rest become new processes on that
    computer. Where submit is true they are claimed by this worker, or follow an equal one that is under way;
    where it is not they are left for whoever runs the campaign, and a dispatcher is to.
    """
    new: list[Node] = []
    try:
        with profile.transaction() as cursor:
            lock_recording(cursor, campaign_id)
            if not submit:
                mark_submitted(cursor, campaign_id)
                rows.tell(cursor, [rows.queue_news(campaign_id)])
            return _record(profile, cursor, campaign_id, calls, slice_, submit, new, computer_id)
    except BaseException:
        forget(new)
        raise


def _record(
    profile: Profile,
    cursor: Any,
    campaign_id: int,
    calls: Calls,
    slice_: Sequence[Call],
    submit: bool,
    new_nodes: list[Node],
    computer_id: int | None,
) -> Recorded:
    first_of: dict[bytes, Call] = {}
    times: dict[bytes, int] = {}
    for call in slice_:
        first_of.setdefault(call.key, call)
        times[call.key] = times.get(call.key, 0) + 1
    known = rows.find_recorded(cursor, campaign_id, first_of.keys())
    fresh = [call for key, call in first_of.items() if key not in known]
    recipe = calls.recipe
    _reuse_stored_inputs(profile, cursor, campaign_id, fresh)
    drafts = [draft_or_reason(recipe, call.values()) for call in fresh]
    nodes, links = _nodes_and_links(calls, fresh, drafts)
    for node in nodes:
        node.computer_id = computer_id
    new_nodes += _new_data(fresh)
    new_nodes += nodes
    store(
        cursor,
        new_nodes,
        links,
        user_id=profile.user_id,
        repository=profile.repository,
        index=profile.index(cursor),
        reader=profile.read_files,
    )
    unfinished = {found.node_id: first_of[key] for key, found in known.items() if found.state not in ENDED}
    claimed = rows.claim(cursor, unfinished, profile.worker_id) if submit else {}
    shared = calls.caching is Caching.SHARED
    sources: dict[bytes, Source] = {}
    leaders: dict[bytes, int] = {}
    if shared:
        keys = {call.key for call in fresh}
        profile.index(cursor).hold()  # clones rely on the blobs of the others
        if submit:
            lock_keys(cursor, keys | {unfinished[process_id].key for process_id in claimed})
            sources, leaders = find_leaders(cursor, keys)
        else:
            sources = find_reusable(cursor, keys)
    recorded = Recorded([])
    answers: dict[bytes, int] = {key: found.node_id for key, found in known.items()}
    status = step(ProcessStatus(), Submitted()) if submit else ProcessStatus()
    new_rows = []
    clones: list[tuple[int, int]] = []
    for call, node, draft in zip(fresh, nodes, drafts, strict=True):
        node_id = node.id
        assert node_id is not None
        answers[call.key] = node_id
        new = NewProcess(
            node_id,
            recipe.label,
            call.key,
            campaign_id,
            calls.offset + call.index,
            status.state,
            status.attempt,
            profile.worker_id if submit else None,
            queue_id=campaign_id,
            use_cache=shared,
        )
        source = sources.get(call.key)
        if source is not None:
            new.state, new.cached_from = State.FINISHED, source.node_id
            new.exit_status, new.exit_message = source.exit_status, source.exit_message
            clones.append((source.node_id, node_id))
            recorded.answered += times[call.key]
            recorded.failed += times[call.key] if source.exit_status else 0
        elif isinstance(draft, str):
            new.state, new.exit_message = State.EXCEPTED, draft
            recorded.refused += times[call.key]
            recorded.failed += times[call.key]
        elif call.key in leaders:
            new.state, new.attempt, new.worker_id = State.CREATED, 0, None
            new.cached_from = leaders[call.key]
            recorded.following[node_id] = times[call.key]
        elif submit:
            recorded.to_run.append(ToRun(node_id, status.attempt, draft, call.values(), times[call.key]))
        new_rows.append(new)
    rows.insert(cursor, new_rows)
    clone_outputs(cursor, clones, user_id=profile.user_id)
    for key, found in known.items():
        if found.state in ENDED:
            recorded.answered += times[key]
            recorded.failed += times[key] if found.state is not State.FINISHED or found.exit_status else 0
    if calls.labelled and known:
        rows.label_nameless(
            cursor, {found.node_id: calls.label_of(first_of[key]) for key, found in known.items()}
        )
    if submit:
        _take_over(cursor, recipe, unfinished, claimed, times, recorded)
    else:
        rows.play(cursor, unfinished)
    recorded.places = [answers[call.key] for call in slice_]
    return recorded


def _take_over(
    cursor: Any,
    recipe: Recipe,
    unfinished: Mapping[int, Call],
    claimed: Mapping[int, int],
    times: Mapping[bytes, int],
    recorded: Recorded,
) -> None:
    """Go on with calls that an earlier run has left, with the code and resources of this map.

    claimed: of these processes those that this worker has now, and in which attempt.
    """
    following = sort_out(cursor, claimed)
    refused = []
    for process_id, call in unfinished.items():
        attempt, count = claimed.get(process_id), times[call.key]
        if process_id in following:
            recorded.following[process_id] = count
            continue
        if attempt is None:
            recorded.awaited[process_id] = count
            continue
        values = call.values()
        draft = draft_or_reason(recipe, values)
        if isinstance(draft, Draft):
            recorded.to_run.append(ToRun(process_id, attempt, draft, values, count))
        else:
            refused.append(rows.End.excepted(process_id, attempt, draft))
            recorded.refused += count
            recorded.failed += count
    rows.end(cursor, refused)


def draft_or_reason(recipe: Recipe, values: Mapping[str, object]) -> Draft | str:
    """A call made ready, or, where the user's code raised, what it said."""
    try:
        return recipe.draft(values)
    except GrangeError as error:
        return str(error)
    except BaseException as error:  # the user's prepare(): whatever it raises ends this one process
        if is_interrupt(error):
            raise
        return f"prepare() raised {said_by(error)}{place_of(error)}"


def _new_data(fresh: Iterable[Call]) -> list[Data]:
    """The data nodes of these calls that are not stored yet, each once."""
    seen: dict[int, Data] = {}
    for call in fresh:
        for argument in call.arguments.values():
            for node in argument.nodes.values():
                if node.id is None:
                    seen.setdefault(id(node), node)
    return list(seen.values())


def _reuse_stored_inputs(profile: Profile, cursor: Any, campaign_id: int, fresh: Sequence[Call]) -> None:
    """Let inputs that an earlier run of this campaign has stored be the same nodes again.

    Numbers and texts are not worth the question; a structure or a file is one node in the graph,
    however often the script is started.
    """
    wanted: dict[bytes, list[tuple[dict[str, Data], str]]] = {}
    for call in fresh:
        for argument in call.arguments.values():
            for label, node in argument.nodes.items():
                if node.id is None and node.node_type in SHARED_TYPES:
                    assert isinstance(argument.nodes, dict)
                    wanted.setdefault(node.content_hash(), []).append((argument.nodes, label))
    if not wanted:
        return
    stored = find_inputs(cursor, campaign_id, wanted.keys(), profile.read_files)
    for content_hash, places in wanted.items():
        first_nodes, first_label = places[0]
        node = stored.get(content_hash, first_nodes[first_label])
        for nodes, label in places:
            nodes[label] = node


def _nodes_and_links(
    calls: Calls, fresh: Sequence[Call], drafts: Sequence[Draft | str]
) -> tuple[list[Node], list[Link]]:
    recipe = calls.recipe
    nodes: list[Node] = []
    links: list[Link] = []
    shared = checked(calls.attributes, "attributes")
    for call, draft in zip(fresh, drafts, strict=True):
        attributes, files = shared, recipe.files
        if isinstance(draft, Draft):
            if draft.attributes:
                attributes = {**shared, **checked(draft.attributes, "attributes")}
            if draft.files:
                files = {**files, **draft.files}
        node = recipe.node_class.from_checked(
            attributes, label=calls.label_of(call), files=files, process_type=recipe.process_type
        )
        nodes.append(node)
        for argument in call.arguments.values():
            for label, data in argument.nodes.items():
                links.append(Link(data, node, LinkType.INPUT_CALC, label))
    return nodes, links
