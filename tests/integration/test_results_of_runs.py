"""What gr.run and Future.result() give: of functions what they returned, of classes all outputs by name."""

from __future__ import annotations

from typing import Any

import grange as gr
from grange.core.client_waiter import future_of
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
