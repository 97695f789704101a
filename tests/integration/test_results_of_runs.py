"""What gr.run and Future.result() give: of functions what they returned, of classes all outputs by name."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import grange as gr
from grange.core import client_waiter
from grange.core.client_waiter import future_of
from grange.core.hub import Hub
from grange.core.profile import Profile


def says_and_doubles(n: int) -> int:
    print("doubling", n)
    return 2 * n


@gr.calcfunction
def doubled(n: int) -> int:
    return 2 * n


@gr.workflow
def doubles_twice(n: Any) -> Any:
    return gr.submit(says_and_doubles, n=gr.submit(says_and_doubles, n=n).result()).result()


class Doubles(gr.WorkChain):
    """Doubles a number."""

    @classmethod
    def define(cls, spec: Any) -> None:
        super().define(spec)
        spec.input("n", valid_type=gr.Int)
        spec.output("result", valid_type=gr.Int)
        spec.outline(cls.double)

    def double(self) -> None:
        self.out("result", doubled(self.inputs.n))


@gr.workflow
def doubles_by_class(n: Any) -> Any:
    return gr.submit(Doubles, n=n).result()["result"]


def test_what_a_function_prints_is_no_result_of_it(profile: Profile) -> None:
    given, process = gr.run_get_node(says_and_doubles, n=1, profile=profile, progress=False)
    assert given.value == 2
    assert sorted(process.outputs) == ["result", "retrieved"]
    assert future_of(profile, process.id).result().value == 2
    assert gr.run(doubles_twice, n=1, profile=profile, progress=False).value == 4


def test_a_class_gives_a_dict_also_of_one_output(profile: Profile) -> None:
    given, process = gr.run_get_node(Doubles, n=1, profile=profile, progress=False)
    assert given["result"].value == 2
    assert future_of(profile, process.id).result()["result"].value == 2
    assert gr.run(doubles_by_class, n=1, profile=profile, progress=False).value == 2


class Pauses(gr.WorkChain):
    """Waits for somebody."""

    @classmethod
    def define(cls, spec: Any) -> None:
        super().define(spec)
        spec.outline(cls.wait_for_somebody)

    def wait_for_somebody(self) -> None:
        self.pause("look at it")


def test_who_waits_for_what_is_paused_is_told(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_waiter, "NOBODY_AFTER_S", 0.1)
    future = gr.submit(Pauses, profile=profile)
    assert client_waiter.said_of_paused(profile, [future]) == ""
    hub = Hub(profile)
    for _ in range(3):
        hub.step(0.0)
    hub.let_go()
    said = f"process {future.id} is paused: look at it; `grange process play {future.id}` lets it go on"
    told: list[str] = []

    def play(message: str) -> int:
        told.append(message)
        if said in message:
            gr.play_processes([future.id], profile=profile)
            for _ in range(3):
                hub.step(0.0)
        return len(message)

    monkeypatch.setattr(sys.stderr, "write", play)
    assert future.wait()
    assert f"{said}\n" in told
