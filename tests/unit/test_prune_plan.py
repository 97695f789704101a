"""What pruning and repacking decide: plain data in, a plan out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.repository.holdings import holdings_of
from grange.repository.object_use import ObjectUse
from grange.repository.pack import size_of_pack
from grange.repository.prune_plan import PrunePlan, plan_prune
from grange.repository.rebuild_plan import plan_rebuild
from grange.repository.repack_plan import MANY_SMALL, plan_repack
from grange.repository.store import ObjectInfo

NOW = 1_000_000.0
DAY = 86_400.0
MIB = 1 << 20


def pack(number: int) -> str:
    return f"packs/ab/{number:032x}.zip"


def there(name: str, size: int = 1000, age_s: float = 10 * DAY) -> ObjectInfo:
    return ObjectInfo(name, size, NOW - age_s)


def planned(
    uses: list[ObjectUse], objects: list[ObjectInfo], *, grace_s: float = DAY, missing: int = 0
) -> PrunePlan:
    return plan_prune(uses, objects, now_s=NOW, grace_s=grace_s, missing=missing)


def names(doomed: list[object]) -> list[str]:
    return [one.name for one in doomed]  # type: ignore[attr-defined]


class TestPrune:
    def test_what_is_needed_stays(self) -> None:
        plan = planned([ObjectUse(pack(1), blobs=2, stored_bytes=500)], [there(pack(1))], grace_s=0)
        assert plan.nothing
        assert plan.inside_bytes == 1000 - size_of_pack(2, 500)
        assert (plan.objects, plan.object_bytes) == (1, 1000)

    def test_rows_of_dead_blobs_go_at_once_whatever_the_grace(self) -> None:
        use = ObjectUse(pack(1), blobs=5, stored_bytes=500, dead_blobs=2, dead_bytes=200)
        plan = planned([use], [there(pack(1))])
        assert (plan.rows, plan.row_bytes, plan.sweep) == (2, 200, {pack(1): 2})
        assert not plan.now
        assert not plan.later

    def test_an_object_all_of_which_is_dead_goes_after_the_grace_from_now(self) -> None:
        use = ObjectUse(pack(1), blobs=2, stored_bytes=500, dead_blobs=2, dead_bytes=500)
        plan = planned([use], [there(pack(1))])
        assert not plan.now
        [doomed] = plan.later
        assert (doomed.reason, doomed.due_s, plan.later_bytes) == ("dying", NOW + DAY, 1000)
        [doomed] = planned([use], [there(pack(1))], grace_s=0).now
        assert doomed.name == pack(1)

    @pytest.mark.parametrize(("dead_for_s", "goes"), [(DAY - 1, False), (DAY, True)])
    def test_a_dead_object_has_been_so_for_the_grace(self, dead_for_s: float, goes: bool) -> None:
        use = ObjectUse(pack(1), dead_since_s=NOW - dead_for_s)
        plan = planned([use], [there(pack(1))])
        assert bool(plan.now) is goes
        assert bool(plan.later) is not goes

    @pytest.mark.parametrize(("age_s", "goes"), [(DAY - 1, False), (DAY, True)])
    def test_an_orphan_has_been_there_for_the_grace(self, age_s: float, goes: bool) -> None:
        plan = planned([], [there(pack(1), age_s=age_s)])
        assert names(list(plan.now if goes else plan.later)) == [pack(1)]

    def test_orphans_stay_while_the_index_misses_something(self) -> None:
        plan = planned([], [there(pack(1))], missing=1)
        assert plan.nothing
        assert names(list(plan.kept_orphans)) == [pack(1)]

    def test_what_a_campaign_under_way_may_need_stays(self) -> None:
        uses = [
            ObjectUse(pack(1), blobs=2, stored_bytes=9, dead_blobs=2, dead_bytes=9, held_for="screening"),
            ObjectUse(pack(2), held_for="screening"),
            ObjectUse(pack(3), dead_since_s=0.0, held_for="relaxation"),
        ]
        plan = planned(uses, [there(pack(n)) for n in (1, 2, 3)], grace_s=0)
        assert plan.nothing
        assert plan.held_for == ("relaxation", "screening")
        assert plan.held_bytes == 3000

    def test_the_row_of_an_object_that_is_gone_goes(self) -> None:
        plan = planned([ObjectUse(pack(1), dead_since_s=NOW - 2 * DAY)], [])
        assert plan.forgotten == [pack(1)]

    def test_a_row_without_blobs_that_nobody_has_called_dead(self) -> None:
        plan = planned([ObjectUse(pack(1))], [there(pack(1))])
        assert plan.sweep == {pack(1): 0}
        assert names(list(plan.later)) == [pack(1)]

    def test_what_else_lies_in_a_bucket_is_not_ours(self) -> None:
        assert planned([], [there("quarantine/x"), there("notes.txt")], grace_s=0).nothing


uses_of = st.builds(
    lambda name, needed, dead, held, since: ObjectUse(
        name,
        blobs=needed + dead,
        stored_bytes=10 * (needed + dead),
        content_bytes=20 * (needed + dead),
        dead_blobs=dead,
        dead_bytes=10 * dead,
        held_for=held,
        dead_since_s=None if needed + dead else since,
    ),
    st.integers(0, 20).map(pack),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["", "", "a"]),
    st.one_of(st.none(), st.floats(0, NOW)),
)
objects_of = st.builds(there, st.integers(0, 20).map(pack), st.integers(1, 10_000), st.floats(-DAY, 9 * DAY))


@given(
    st.lists(uses_of, unique_by=lambda use: use.name),
    st.lists(objects_of, unique_by=lambda found: found.name),
    st.sampled_from([0.0, 60.0, DAY]),
    st.integers(0, 2),
)
def test_no_plan_takes_away_what_is_needed(
    uses: list[ObjectUse], objects: list[ObjectInfo], grace_s: float, missing: int
) -> None:
    plan = planned(uses, objects, grace_s=grace_s, missing=missing)
    known = {use.name: use for use in uses}
    sizes = {found.name: found for found in objects}
    for one in [*plan.now, *plan.later]:
        use = known.get(one.name)
        assert use is None or not (use.needed_blobs or use.held_for)
        assert use is not None or not missing
        assert one.size == sizes[one.name].size
    for one in plan.now:
        use = known.get(one.name)
        if use is None:
            assert sizes[one.name].mtime <= NOW - grace_s
        elif use.dead_since_s is not None:
            assert use.dead_since_s <= NOW - grace_s
        else:
            assert grace_s == 0
    assert {one.name for one in plan.now}.isdisjoint(one.name for one in plan.later)
    for name in [*plan.sweep, *plan.forgotten]:
        assert not known[name].held_for
    assert plan.rows == sum(use.dead_blobs for use in uses if not use.held_for)
    # everything is accounted for, once
    accounted = plan.now_bytes + plan.later_bytes + sum(found.size for found in plan.kept_orphans)
    stays = sum(
        found.size
        for found in objects
        if (use := known.get(found.name)) is not None and (use.needed_blobs or use.held_for)
    )
    assert accounted + stays == plan.object_bytes == sum(found.size for found in objects)


@given(st.lists(uses_of, unique_by=lambda use: use.name), st.lists(objects_of, unique_by=lambda o: o.name))
def test_holdings_add_up(uses: list[ObjectUse], objects: list[ObjectInfo]) -> None:
    held = holdings_of(uses, objects)
    assert held.packs == len(objects)
    assert held.size == sum(found.size for found in objects)
    assert held.dead_bytes <= held.size
    assert held.blobs == sum(use.blobs for use in uses)
    assert held.gone == len({use.name for use in uses if use.blobs} - {found.name for found in objects})


def full(number: int, needed_blobs: int, stored_bytes: int, **more: object) -> ObjectUse:
    return ObjectUse(
        pack(number), blobs=needed_blobs, stored_bytes=stored_bytes, content_bytes=2 * stored_bytes, **more  # type: ignore[arg-type]
    )  # fmt: skip


class TestRepack:
    def test_packs_that_are_mostly_dead(self) -> None:
        uses = [full(1, 10, 9 * MIB), full(2, 10, 20 * MIB), full(3, 10, 30 * MIB, held_for="a")]
        objects = [there(pack(1), 32 * MIB), there(pack(2), 32 * MIB), there(pack(3), 320 * MIB)]
        plan = plan_repack(uses, objects)
        assert plan.groups == [[pack(1)]]
        assert (plan.mostly_dead, plan.small, plan.blobs) == (1, 0, 10)
        assert plan.needed_bytes == size_of_pack(10, 9 * MIB)
        assert plan.needed_bytes + plan.dead_bytes == 32 * MIB
        assert plan_repack(uses, objects, dead_share=0.3).packs == 2

    def test_a_pack_of_tiny_contents_is_not_dead_for_its_headers(self) -> None:
        size = size_of_pack(100_000, 100_000)
        assert not plan_repack([full(1, 100_000, 100_000)], [there(pack(1), size)]).packs

    def test_a_dead_pack_is_left_to_pruning(self) -> None:
        uses = [ObjectUse(pack(1), dead_since_s=0.0), ObjectUse(pack(2), 2, 10, 10, 2, 10)]
        assert not plan_repack(uses, [there(pack(1)), there(pack(2))]).packs

    @pytest.mark.parametrize(("count", "size", "repacked"), [
        (3, 7 * MIB, 0), (5, 7 * MIB, 5), (MANY_SMALL - 1, 100, 0), (MANY_SMALL, 100, MANY_SMALL),
    ])  # fmt: skip
    def test_small_packs_when_they_fill_one_or_are_many(self, count: int, size: int, repacked: int) -> None:
        uses = [full(n, 1, size) for n in range(count)]
        objects = [there(pack(n), size_of_pack(1, size)) for n in range(count)]
        plan = plan_repack(uses, objects)
        assert (plan.packs, plan.small) == (repacked, repacked)
        assert sum(map(len, plan.groups)) == repacked

    def test_groups_are_bounded_by_their_contents(self) -> None:
        uses = [full(n, 1, 10 * MIB) for n in range(10)]
        plan = plan_repack(uses, [there(pack(n), 30 * MIB) for n in range(10)])
        assert [len(group) for group in plan.groups] == [4, 4, 2]

    @pytest.mark.parametrize("share", [0, -1, 1.1])
    def test_a_share_that_is_none(self, share: float) -> None:
        with pytest.raises(ValueError, match="dead_share"):
            plan_repack([], [], dead_share=share)

    @given(st.lists(uses_of, unique_by=lambda u: u.name), st.lists(objects_of, unique_by=lambda o: o.name))
    def test_never_what_is_held_or_not_there(self, uses: list[ObjectUse], objects: list[ObjectInfo]) -> None:
        plan = plan_repack(uses, objects, target_bytes=1000)
        chosen = [name for group in plan.groups for name in group]
        assert sorted(chosen) == sorted(plan.sizes)
        known = {use.name: use for use in uses}
        for name in chosen:
            assert known[name].needed_blobs
            assert not known[name].held_for
            assert name in {found.name for found in objects}


class TestRebuild:
    def test_what_differs(self) -> None:
        alone = "blobs/ab/cd/abcd" + "0" * 60
        uses = [ObjectUse(pack(1), blobs=2), ObjectUse(pack(2), blobs=3), ObjectUse(pack(9))]
        plan = plan_rebuild(uses, [there(pack(1)), there(pack(3)), there(alone), there("quarantine/x")])
        assert [found.name for found in plan.unread] == [alone, pack(3)]
        assert (plan.gone, plan.gone_blobs, plan.known) == ([pack(2)], 3, 1)
        assert not plan.nothing

    def test_everything_is_read_again_where_that_is_asked(self) -> None:
        uses, objects = [ObjectUse(pack(1), blobs=2)], [there(pack(1))]
        assert plan_rebuild(uses, objects).nothing
        assert [found.name for found in plan_rebuild(uses, objects, everything=True).unread] == [pack(1)]
