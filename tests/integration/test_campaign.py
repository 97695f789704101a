"""Campaigns from end to end: real PostgreSQL, real store, real runner processes."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Any

import numpy
import pytest

import grange as gr
from grange.core.errors import CampaignBusy, InputInvalid
from grange.core.profile import Profile
from grange.core.transition import State
from grange.farm.errors import FunctionNotShippable, TaskRefused


class Colour(Enum):
    RED = "red"


def square(x: float) -> float:
    return x * x


def parts(x: int, y: int) -> dict[str, object]:
    return {"total": x + y, "text": f"{x}+{y}", "list": [x, y]}


def fragile(x: int) -> int:
    if x == 3:
        raise ValueError(f"no {x}")
    if x == 4:
        return object()  # type: ignore[return-value]
    if x == 5:
        return gr.ExitCode(301, "five is too much")  # type: ignore[return-value]
    return x


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_a_function_is_run_a_thousand_times(profile: Profile) -> None:
    campaign = gr.Campaign("squares", profile)
    assert campaign.map(square, x=range(1000)) == 1000
    done = campaign.run(progress=False)
    assert (done.total, done.done, done.failed, done.reused) == (1000, 1000, 0, 0)
    frame = campaign.results()
    assert list(frame.columns) == ["process", "x", "result", "state", "exit_status", "exit_message"]
    assert frame["result"].tolist() == [float(x * x) for x in range(1000)]
    assert frame["x"].tolist() == list(range(1000))
    assert set(frame["state"]) == {"finished"}
    assert set(frame["exit_status"]) == {0}


def test_run_again_answers_from_the_record(profile: Profile) -> None:
    for _ in range(2):
        campaign = gr.Campaign("again", profile)
        campaign.map(square, x=range(50))
        done = campaign.run(progress=False)
    assert (done.done, done.reused) == (50, 50)
    assert len(gr.Campaign("again", profile).results()) == 50


def test_another_campaign_reuses_equal_calls(profile: Profile) -> None:
    first = gr.Campaign("first", profile)
    first.map(parts, x=range(20), y=1)
    first.run(progress=False)
    second = gr.Campaign("second", profile)
    second.map(parts, x=range(25), y=1)
    done = second.run(progress=False)
    assert (done.done, done.reused) == (25, 20)
    ours, theirs = second.results(), first.results()
    assert ours["total"].tolist()[:20] == theirs["total"].tolist()
    assert not set(ours["process"]) & set(theirs["process"])
    third = gr.Campaign("third", profile)
    third.map(parts, x=range(20), y=1, cache=False)
    assert third.run(progress=False).reused == 0


def test_calls_made_twice_are_computed_once(profile: Profile) -> None:
    campaign = gr.Campaign("twice", profile)
    campaign.map(square, x=[1.0, 2.0, 1.0, 2.0, 3.0])
    done = campaign.run(progress=False)
    assert done.done == 5
    frame = campaign.results()
    assert frame["result"].tolist() == [1, 4, 1, 4, 9]
    assert frame["process"].nunique() == 3


def test_product_goes_through_every_combination(profile: Profile) -> None:
    campaign = gr.Campaign("product", profile)
    assert campaign.map(parts, x=[1, 2, 3], y=[10, 20], product=True) == 6
    campaign.run(progress=False)
    frame = campaign.results()
    assert list(zip(frame["x"], frame["y"], strict=True)) == [
        (1, 10),
        (1, 20),
        (2, 10),
        (2, 20),
        (3, 10),
        (3, 20),
    ]
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT count(*) FROM node WHERE node_type = 'data.core.int.Int.' AND id IN "
            "(SELECT source_id FROM link WHERE type = 'input_calc')"
        )
        assert cursor.fetchone() == (5,)


def test_failures_are_results_with_reasons(profile: Profile) -> None:
    campaign = gr.Campaign("fragile", profile)
    campaign.map(fragile, x=range(8))
    done = campaign.run(progress=False)
    assert (done.done, done.failed) == (8, 3)
    failures = campaign.failures().set_index("x")
    assert failures.loc[3, "state"] == "excepted"
    assert failures.loc[3, "exit_message"] == "ValueError: no 3"
    assert failures.loc[4, "state"] == "excepted"
    assert "object" in failures.loc[4, "exit_message"]
    assert (failures.loc[5, "exit_status"], failures.loc[5, "exit_message"]) == (301, "five is too much")
    assert campaign.counts() == {
        (State.FINISHED, False): 5,
        (State.FINISHED, True): 1,
        (State.EXCEPTED, False): 2,
    }


def test_retry_makes_failed_calls_again(profile: Profile, tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    def moody(x: int, flag: str) -> int:
        from pathlib import Path

        if x % 2 and not Path(flag).exists():
            raise RuntimeError("not yet")
        return x

    campaign = gr.Campaign("moody", profile)
    campaign.map(moody, x=range(10), flag=str(flag))
    assert campaign.run(progress=False).failed == 5
    flag.touch()
    again = gr.Campaign("moody", profile)
    assert again.retry() == 5
    assert again.run(progress=False).done == 5
    frame = gr.Campaign("moody", profile).results()
    assert frame["result"].tolist() == list(range(10))
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*), count(superseded_by) FROM process")
        assert cursor.fetchone() == (15, 5)


def test_outputs_are_passed_on_with_their_provenance(profile: Profile) -> None:
    first = gr.Campaign("points", profile)
    first.map(square, x=[1.0, 2.0, 3.0, 4.0])
    first.run(progress=False)
    nodes = first.results(nodes=True)["result"].tolist()
    assert [node.value for node in nodes] == [1, 4, 9, 16]
    second = gr.Campaign("means", profile)
    second.map(mean, values=[nodes[:2], nodes[2:]])
    second.run(progress=False)
    assert second.results()["result"].tolist() == [2.5, 12.5]
    assert second.results()["values"].tolist() == [[1, 4], [9, 16]]
    with profile.transaction() as cursor:
        cursor.execute("SELECT source_id, label FROM link WHERE label LIKE 'values%' ORDER BY source_id")
        assert set(cursor.fetchall()) == {
            (node.id, f"values__{place}") for node, place in zip(nodes, [0, 1, 0, 1], strict=True)
        }


def test_every_kind_of_value_goes_in_and_comes_out(profile: Profile) -> None:
    ase = pytest.importorskip("ase")

    def everything(
        n: int, t: str, b: bool, f: float, s: list, d: dict, atoms: Any, array: Any, c: Any
    ) -> dict[str, Any]:  # type: ignore[type-arg]
        print("said")
        return {
            "n": n,
            "t": t,
            "b": b,
            "f": f,
            "s": s,
            "d": gr.Dict(d) if False else d,
            "atoms": atoms,
            "array": array * 2,
            "nan": float("nan"),
            "c": c.value,
        }

    campaign = gr.Campaign("everything", profile)
    atoms = ase.Atoms("NaCl", positions=[[0, 0, 0], [2, 0, 0]], cell=[4, 4, 4], pbc=True)
    campaign.map(
        everything,
        n=7,
        t="tab\t\\ and ünïcode\n",
        b=True,
        f=math.inf,
        s=gr.fixed([1, "a", None]),
        d={"k": [1, {"x": 2}]},
        atoms=atoms,
        array=gr.fixed(numpy.arange(6.0).reshape(2, 3)),
        c=Colour.RED,
    )
    assert campaign.run(progress=False).failed == 0, campaign.failures()["exit_message"].tolist()
    row = campaign.results(nodes=True).iloc[0]
    assert row["n_out"].value == 7
    assert row["t_out"].value == "tab\t\\ and ünïcode\n"
    assert row["b_out"].value is True
    assert row["f_out"].value == math.inf
    assert row["s_out"].value == [1, "a", None]
    assert row["d_out"].value == {"k": [1, {"x": 2}]}
    assert row["atoms_out"].value.get_chemical_formula() == "ClNa"
    assert numpy.allclose(row["atoms_out"].value.cell, atoms.cell)
    assert numpy.array_equal(row["array_out"].value, numpy.arange(6.0).reshape(2, 3) * 2)
    assert math.isnan(row["nan"].value)
    flat = campaign.results().iloc[0]
    assert flat["atoms"] == "ClNa"
    assert numpy.array_equal(flat["array_out"], numpy.arange(6.0).reshape(2, 3) * 2)


def test_calls_do_not_see_what_others_did_to_their_arguments(profile: Profile) -> None:
    def greedy(basket: Any, n: int) -> int:
        basket.append(n)
        return len(basket)

    campaign = gr.Campaign("greedy", profile)
    campaign.map(greedy, basket=gr.fixed([]), n=range(100))
    campaign.run(progress=False)
    assert set(campaign.results()["result"]) == {1}


def test_submitted_calls_are_run_by_whoever_opens_the_campaign(profile: Profile) -> None:
    campaign = gr.Campaign("later", profile)
    campaign.map(square, x=range(30))
    assert campaign.submit() == 30
    assert campaign.counts() == {(State.CREATED, False): 30}
    later = gr.Campaign("later", profile)
    assert later.run(progress=False).done == 30
    assert later.results()["result"].tolist() == [x * x for x in range(30)]


def test_lazy_results_are_the_same_frame(profile: Profile) -> None:
    pytest.importorskip("dask.dataframe")
    campaign = gr.Campaign("lazy", profile)
    campaign.map(parts, x=range(40), y=2)
    campaign.run(progress=False)
    lazy = campaign.results(lazy=True)
    eager = campaign.results().set_index("process")
    assert lazy["total"].sum().compute() == eager["total"].sum()
    computed = lazy.compute()
    assert computed[["x", "y", "total", "text"]].equals(
        eager[["x", "y", "total", "text"]].astype(computed[["x", "y", "total", "text"]].dtypes)
    )


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"x": ["a"]}, "square: x[0]: expected float, got 'a' (str)"),
        ({}, "square: x"),
        ({"x": 1.0, "z": 2}, "square: z"),
        ({"x": [1.0, True]}, "square: x[1]: expected float, got True (bool)"),
    ],
)
def test_bad_input_is_refused_before_anything_is_stored(
    profile: Profile, inputs: dict[str, object], said: str
) -> None:
    campaign = gr.Campaign("bad", profile)
    with pytest.raises(InputInvalid) as refused:
        campaign.map(square, **inputs)  # type: ignore[arg-type]
    assert said in str(refused.value)
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM node")
        assert cursor.fetchone() == (0,)


def test_lengths_that_differ_are_refused_with_advice(profile: Profile) -> None:
    with pytest.raises(InputInvalid, match="product=True"):
        gr.Campaign("lengths", profile).map(parts, x=[1, 2], y=[1, 2, 3])


def test_a_function_that_cannot_travel_is_refused(profile: Profile) -> None:
    import threading

    lock = threading.Lock()

    def locked(x: int) -> int:
        with lock:
            return x

    with pytest.raises(FunctionNotShippable, match="lock"):
        gr.Campaign("locked", profile).map(locked, x=[1])


def test_what_the_machine_has_not_is_refused(profile: Profile) -> None:
    campaign = gr.Campaign("huge", profile)
    campaign.map(square, x=[1.0], resources=gr.Resources(cpus=100_000))
    with pytest.raises(TaskRefused, match="100"):
        campaign.run(progress=False)
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM node")
        assert cursor.fetchone() == (0,)


def test_one_process_at_a_time_runs_a_campaign(profile: Profile) -> None:
    campaign = gr.Campaign("busy", profile)
    campaign.map(square, x=[1.0])
    from grange.core.worker import lock_campaign

    other = profile.connect()
    try:
        lock_campaign(other, campaign.id)
        with pytest.raises(CampaignBusy):
            campaign.run(progress=False)
    finally:
        other.close()


def test_labels_are_carried_along(profile: Profile) -> None:
    campaign = gr.Campaign("labelled", profile)
    campaign.map(square, x=[1.0, 2.0], labels=["one", "two"])
    assert campaign.results()["state"].tolist() == ["created", "created"]
    campaign.run(progress=False)
    assert campaign.results()["label"].tolist() == ["one", "two"]
    later = gr.Campaign("unlabelled", profile)
    later.map(square, x=[3.0, 4.0])
    later.run(progress=False)
    again = gr.Campaign("unlabelled", profile)
    again.map(square, x=[3.0, 4.0], labels=["three", "four"])
    assert again.run(progress=False).reused == 2
    assert again.results()["label"].tolist() == ["three", "four"]
    with pytest.raises(InputInvalid, match="2 texts"):
        campaign.map(square, x=[1.0, 2.0], labels=["one"])


def test_inputs_whose_names_are_taken_go_in_a_dict(profile: Profile) -> None:
    def f(labels: int, cache: int) -> int:
        return labels + cache

    campaign = gr.Campaign("names", profile)
    campaign.map(f, {"labels": [1, 2], "cache": 3})
    campaign.run(progress=False)
    assert campaign.results()["result"].tolist() == [4, 5]


def test_a_calcfunction_is_recorded_where_it_is_called(profile: Profile) -> None:
    @gr.calcfunction
    def add(x: int, y: int) -> int:
        return x + y

    @gr.calcfunction
    def never(x: int) -> int:
        raise ZeroDivisionError("never")

    with pytest.raises(gr.GrangeError, match="recording"):
        add(1, 2)
    with gr.recording(profile):
        total = add(add(1, 2), y=4)
        assert total.value == 7
        with pytest.raises(ZeroDivisionError):
            never(total)
        with pytest.raises(InputInvalid, match="add: x"):
            add("a", 1)
    with profile.transaction() as cursor:
        cursor.execute("SELECT state::text, exit_status, exit_message FROM process ORDER BY node_id")
        assert cursor.fetchall() == [
            ("finished", 0, None),
            ("finished", 0, None),
            ("excepted", None, "ZeroDivisionError: never"),
        ]


def test_a_structure_is_one_node_however_often_the_script_is_started(profile: Profile) -> None:
    ase = pytest.importorskip("ase")

    def sites(atoms: Any, n: int) -> int:
        return len(atoms) + n

    for count in (3, 6):
        campaign = gr.Campaign("sites", profile)
        campaign.map(sites, atoms=[ase.Atoms("Cu") for _ in range(count)], n=range(count))
        campaign.run(progress=False)
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM node WHERE node_type = 'data.core.structure.StructureData.'")
        assert cursor.fetchone() == (1,)
    assert campaign.results()["result"].tolist() == [1, 2, 3, 4, 5, 6]


def test_inputs_named_like_columns_of_the_frame_keep_their_values(profile: Profile) -> None:
    def f(process: int, state: str) -> dict[str, object]:
        return {"process": process + 1, "exit_message": state}

    campaign = gr.Campaign("columns", profile)
    campaign.map(f, process=[1, 2], state="solid")
    campaign.run(progress=False)
    frame = campaign.results()
    assert frame["process_in"].tolist() == [1, 2]
    assert frame["process_out"].tolist() == [2, 3]
    assert frame["state_in"].tolist() == ["solid", "solid"]
    assert frame["state"].tolist() == ["finished", "finished"]
    assert frame["exit_message_out"].tolist() == ["solid", "solid"]


def test_a_namespace_of_a_dict_comes_back_as_one(profile: Profile) -> None:
    def total(parts: dict) -> float:  # type: ignore[type-arg]
        return sum(parts["a"]) + parts["b"]

    first = gr.Campaign("numbers", profile)
    first.map(square, x=[1.0, 2.0, 3.0])
    first.run(progress=False)
    one, two, three = first.results(nodes=True)["result"]
    second = gr.Campaign("totals", profile)
    second.map(total, {"parts": {"a": [one, two], "b": three}})
    second.run(progress=False)
    row = second.results().iloc[0]
    assert (row["parts"], row["result"]) == ({"a": [1.0, 4.0], "b": 9.0}, 14.0)


def test_a_calcfunction_returns_by_the_rules_of_the_farm(profile: Profile) -> None:
    @gr.calcfunction
    def give(kind: str) -> object:
        return {
            "several": {"a": 1, "b": [2]},
            "nothing": None,
            "empty": {},
            "hole": {"a": None},
            "name": {"a b": 1},
            "code": gr.ExitCode(300, "no"),
        }[kind]

    several = give.run(profile, "several")
    assert {name: node.value for name, node in several.items()} == {"a": 1, "b": [2]}
    assert give.run(profile, "nothing") is None
    assert give.run(profile, "empty") == {}
    for kind in ("hole", "name"):
        with pytest.raises(InputInvalid, match="give"):
            give.run(profile, kind)
    with pytest.raises(gr.CalculationFailed, match="300"):
        give.run(profile, "code")
    with profile.transaction() as cursor:
        cursor.execute("SELECT state::text, count(*) FROM process GROUP BY 1 ORDER BY 1")
        assert cursor.fetchall() == [("excepted", 2), ("finished", 4)]
