"""Specs of WorkChains: ports in namespaces, what they take, what is recorded of it, and exposing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.core import exit_status
from grange.core.calcfunction import calcfunction
from grange.core.calcjob import CalcJob
from grange.core.data import Dict, Float, Int, List, Str, Structure
from grange.core.errors import InputInvalid, InputMissing
from grange.core.exit_code import ExitCode
from grange.core.exit_codes import OF_JOBS
from grange.core.exit_status import OUT_OF_MEMORY
from grange.core.node import Data
from grange.core.outline import if_, return_, while_
from grange.core.process_spec import ProcessSpec, inputs_of, outputs_of
from grange.core.shell_job import ShellJob
from grange.core.spec_port import Gathered, PortNamespace
from grange.core.workchain import WorkChain


class Energy(CalcJob):
    class Inputs:
        structure: Structure
        cutoff: float = 30.0
        spin: int | None = None

    class Outputs:
        energy: float
        forces: list[float] | None = None

    COLD = ExitCode(311, "too cold")


class Relax(WorkChain):
    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        super().define(spec)
        spec.expose_inputs(Energy, namespace="energy", exclude=["structure"])
        spec.expose_inputs(Energy, include=["structure"])
        spec.input("steps", valid_type=Int, default=10)
        spec.expose_outputs(Energy)
        spec.output("path", valid_type=List)
        spec.outline(cls.step)

    def step(self) -> None: ...


def spec(**ports: dict[str, Any]) -> ProcessSpec:
    made = ProcessSpec("Test")
    for name, options in ports.items():
        made.input(name.replace("__", "."), **options)
    return made


def gathered(made: ProcessSpec, **given: Any) -> Gathered:
    found = Gathered()
    made.inputs.gather(given, "Test", "", found)
    return found


def values(found: Gathered) -> dict[str, Any]:
    return {label: node.value for label, node in found.nodes.items()}


# ---------------------------------------------------------------- one port


@pytest.mark.parametrize(
    ("valid_type", "given_", "node"),
    [
        (Int, 3, Int(3)),
        (Int, Int(3), Int(3)),
        (float, 3, Float(3.0)),
        (Dict, {"a": 1}, Dict({"a": 1})),
        ((Int, Str), "a", Str("a")),
        ([Int, Str], 4, Int(4)),
        (list[float], [1, 2.5], List([1.0, 2.5])),
        (None, "anything", Str("anything")),
    ],
)
def test_values_become_data_of_the_valid_type(valid_type: Any, given_: Any, node: Data) -> None:
    found = gathered(spec(x={"valid_type": valid_type}), x=given_).nodes["x"]
    assert (type(found), found.value) == (type(node), node.value)


@pytest.mark.parametrize(
    ("valid_type", "given_"), [(Int, "a"), (Int, Str("a")), ((Int, Str), 1.5), (Structure, 3), (Dict, [1])]
)
def test_values_of_another_type_are_refused(valid_type: Any, given_: Any) -> None:
    with pytest.raises(InputInvalid, match=r"^Test: x: expected"):
        gathered(spec(x={"valid_type": valid_type}), x=given_)


def test_a_default_is_made_anew_for_each_process() -> None:
    node = Int(7)
    made = spec(x={"default": lambda: Int(5)}, y={"default": node}, z={"default": [1]}, d={"default": dict})
    first, second = gathered(made), gathered(made)
    assert values(first) == values(second) == {"x": 5, "y": 7, "z": [1], "d": {}}
    assert not {id(one) for one in first.nodes.values()} & {id(one) for one in second.nodes.values()}
    assert first.nodes["y"] is not node


def test_none_is_nothing_for_what_need_not_be_given() -> None:
    made = spec(x={"valid_type": Int, "required": False}, y={"valid_type": Int, "default": 4})
    assert values(gathered(made)) == {"y": 4}
    assert values(gathered(made, x=None, y=None)) == {}
    with pytest.raises(InputMissing):
        gathered(spec(x={"valid_type": Int}), x=None)
    assert values(gathered(spec(x={"valid_type": (Int, type(None))}), x=None)) == {"x": None}
    assert values(gathered(spec(x={"valid_type": Int, "default": None}))) == {}


def test_validators_see_data_and_their_port() -> None:
    seen: list[Any] = []

    def positive(value: Int, port: Any) -> str | None:
        seen.append((value.value, port.name))
        return None if value.value > 0 else "has to be positive"

    made = spec(x={"valid_type": Int, "validator": positive})
    gathered(made, x=3)
    assert seen == [(3, "x")]
    with pytest.raises(InputInvalid, match="has to be positive"):
        gathered(made, x=-3)
    with pytest.raises(InputInvalid, match="short"):
        gathered(spec(x={"validator": lambda value: "short"}), x=1)
    with pytest.raises(InputInvalid, match="ZeroDivisionError"):
        gathered(spec(x={"validator": lambda value: 1 / 0}), x=1)  # type: ignore[dict-item,return-value]


def test_serialisers_make_data_of_what_is_none() -> None:
    made = spec(x={"valid_type": List, "serializer": lambda text: List(text.split())})
    assert values(gathered(made, x="a b")) == {"x": ["a", "b"]}
    assert values(gathered(made, x=List([1]))) == {"x": [1]}


def test_settings_are_json_of_the_type() -> None:
    made = spec(x={"valid_type": (int, str), "non_db": True}, y={"is_metadata": True, "required": False})
    found = gathered(made, x=3, y={"a": (1, 2)})
    assert (found.nodes, found.settings) == ({}, {"x": 3, "y": {"a": [1, 2]}})
    assert gathered(made, x=Int(3)).settings == {"x": 3}
    with pytest.raises(InputInvalid):
        gathered(made, x=1.5)
    with pytest.raises(InputInvalid):
        gathered(made, x=1, y=object())


def test_what_lies_in_a_namespace_of_settings_is_a_setting() -> None:
    made = ProcessSpec("Test")
    made.input_namespace("a", non_db=True)
    made.input("a.x", valid_type=int)
    made.input("a.node", valid_type=Int, non_db=False)
    found = gathered(made, a={"x": 3, "node": 4})
    assert (values(found), found.settings) == ({"a__node": 4}, {"a": {"x": 3}})
    assert made.inputs.nested(values(found), found.settings) == {"a": {"node": 4, "x": 3}}


# ---------------------------------------------------------------- namespaces


def test_namespaces_become_labels_and_come_back() -> None:
    made = spec(a__b__x={"valid_type": Int}, a__y={"valid_type": Str}, z={})
    found = gathered(made, a={"b": {"x": 1}, "y": "why"}, z=2)
    assert values(found) == {"a__b__x": 1, "a__y": "why", "z": 2}
    assert made.inputs.nested(values(found), {}) == {"a": {"b": {"x": 1}, "y": "why"}, "z": 2}


def test_what_is_wrong_inside_is_named_with_its_way() -> None:
    made = spec(a__b__x={"valid_type": Int})
    with pytest.raises(InputMissing, match="Test: a: b: x"):
        gathered(made)
    with pytest.raises(InputInvalid, match=r"Test: a: b: y.*it has x"):
        gathered(made, a={"b": {"x": 1, "y": 2}})
    with pytest.raises(InputInvalid, match="a dict of its ports"):
        gathered(made, a=3)


def test_a_namespace_that_is_not_required_may_be_left_out() -> None:
    made = ProcessSpec("Test")
    made.input_namespace("a", required=False)
    made.input("a.x", valid_type=Int)
    made.input("a.y", valid_type=Int, default=2)
    assert values(gathered(made)) == {}
    assert made.inputs.nested({}, {}) == {}
    with pytest.raises(InputMissing, match="a: x"):
        gathered(made, a={})
    assert values(gathered(made, a={"x": 1})) == {"a__x": 1, "a__y": 2}


def test_defaults_inside_are_taken_unless_it_says_otherwise() -> None:
    made = ProcessSpec("Test")
    made.input_namespace("a", required=False, populate_defaults=False)
    made.input("a.y", valid_type=Int, default=2)
    made.input("b.y", valid_type=Int, default=3)
    assert values(gathered(made)) == {"b__y": 3}
    assert values(gathered(made, a={})) == {"a__y": 2, "b__y": 3}


def test_dynamic_namespaces_take_any_names_of_one_type() -> None:
    made = ProcessSpec("Test")
    made.input_namespace("pseudos", dynamic=True, valid_type=Str)
    found = gathered(made, pseudos={"Si": "si.upf", "more": {"Ge": Str("ge.upf")}})
    assert values(found) == {"pseudos__Si": "si.upf", "pseudos__more__Ge": "ge.upf"}
    assert made.inputs.nested(values(found), {}) == {"pseudos": {"Si": "si.upf", "more": {"Ge": "ge.upf"}}}
    assert made.inputs.nested({}, {}) == {"pseudos": {}}
    for wrong in ({"Si": 3}, {"S__i": "a"}, {"1": "a"}, {3: "a"}):
        with pytest.raises(InputInvalid):
            gathered(made, pseudos=wrong)


def test_a_dict_in_a_dynamic_namespace_is_a_value_where_that_can_be() -> None:
    made = ProcessSpec("Test")
    made.inputs.dynamic = True
    assert values(gathered(made, a={"b": 1}, c={"d": Int(1)})) == {"a": {"b": 1}, "c__d": 1}
    made.input_namespace("numbers", valid_type=Int)
    assert values(gathered(made, numbers={"a": {"b": 1}})) == {"numbers__a__b": 1}
    made.input_namespace("parameters", valid_type=Dict)
    assert values(gathered(made, parameters={"a": {"b": 1}})) == {"parameters__a": {"b": 1}}


def test_namespaces_have_validators() -> None:
    def together(value: dict[str, Data], port: PortNamespace) -> str | None:
        return "x or y" if {"x", "y"} <= value.keys() and "x" in port else None

    made = spec(x={"required": False}, y={"required": False})
    made.inputs.validator = together
    gathered(made, x=1)
    with pytest.raises(InputInvalid, match="x or y"):
        gathered(made, x=1, y=2)


def test_names_that_cannot_be() -> None:
    for name in ("a__b", "_a", "a_", "1a", "a b", ""):
        with pytest.raises(InputInvalid):
            ProcessSpec("Test").input(name)
    with pytest.raises(InputInvalid, match="options"):
        ProcessSpec("Test").input("x", valid_typ=Int)
    made = spec(x={})
    with pytest.raises(InputInvalid, match="there is a port"):
        made.input("x.y")


_WORDS = st.from_regex(r"\A[a-z][a-z0-9]{0,3}(_[a-z0-9]{1,3})?\Z")
_TREES = st.recursive(
    st.integers(0, 9), lambda inside: st.dictionaries(_WORDS, inside, min_size=1, max_size=3), max_leaves=8
)


@given(st.dictionaries(_WORDS, _TREES, max_size=4))
def test_whatever_is_given_to_a_dynamic_namespace_comes_back(tree: dict[str, Any]) -> None:
    made = ProcessSpec("Test")
    del made.inputs["metadata"]
    made.inputs.valid_type, made.inputs.dynamic = Int, True
    found = gathered(made, **tree)
    assert made.inputs.nested(values(found), found.settings) == tree


# ---------------------------------------------------------------- exposing


def test_the_ports_of_a_calcjob() -> None:
    inputs = inputs_of(Energy)
    assert list(inputs) == ["structure", "cutoff", "spin", "metadata"]
    assert (inputs["structure"].required, inputs["cutoff"].required) == (True, False)
    assert list(outputs_of(Energy)) == ["energy", "forces", "retrieved"]


def test_exposed_ports_are_checked_like_those_of_the_process(silicon: Any) -> None:
    found = Gathered()
    Relax.spec().inputs.gather({"structure": silicon, "energy": {"cutoff": 40}}, "Relax", "", found)
    assert sorted(found.nodes) == ["energy__cutoff", "steps", "structure"]
    assert found.nodes["energy__cutoff"].value == 40.0
    with pytest.raises(InputInvalid, match="Relax: energy: structure"):
        Relax.spec().inputs.gather(
            {"structure": silicon, "energy": {"structure": silicon}}, "Relax", "", found
        )


def test_exposed_inputs_are_those_of_the_namespace_and_above() -> None:
    given_ = {"structure": "s", "steps": 3, "energy": {"cutoff": 1.0, "metadata": {"label": "e"}}}
    exposed = Relax.spec().exposed_inputs
    inside = exposed(given_, Energy, "energy", True)
    assert inside == {"structure": "s", "cutoff": 1.0, "metadata": {"label": "e"}}
    inside.metadata.label = "mine"
    assert given_["energy"]["metadata"]["label"] == "e"  # type: ignore[index]
    assert exposed(given_, Energy, "energy", False) == {"cutoff": 1.0, "metadata": {"label": "e"}}
    assert exposed(given_, Energy, None, True) == {"structure": "s"}
    made = ProcessSpec("Test")
    made.expose_inputs(Energy)
    own = {"structure": "s", "metadata": {"label": "of the WorkChain"}}
    assert made.exposed_inputs(own, Energy, None, True) == {"structure": "s"}
    with pytest.raises(InputInvalid, match="expose_inputs"):
        exposed(given_, Relax, None, True)
    made = ProcessSpec("Test")
    for namespace in (None, "a", "a.b"):
        made.expose_inputs(Energy, namespace=namespace)
    given_ = {"cutoff": 1, "spin": 1, "a": {"cutoff": 2, "b": {"cutoff": 3}}, "structure": "s"}
    assert made.exposed_inputs(given_, Energy, "a.b", True) == {"cutoff": 3, "spin": 1, "structure": "s"}
    assert made.exposed_inputs(given_, Energy, "a", True) == {"cutoff": 2, "spin": 1, "structure": "s"}


def test_exposed_outputs_have_the_names_for_out_many() -> None:
    made = ProcessSpec("Test")
    made.expose_outputs(Energy, include=["energy"])
    made.expose_outputs(Relax, namespace="a.b")
    given_ = {"energy": 1, "path": 2, "retrieved": 3}
    assert made.exposed_outputs(given_, Energy, None, True) == {"energy": 1}
    assert made.exposed_outputs(given_, Relax, "a.b", True) == {
        "a.b.energy": 1,
        "a.b.path": 2,
        "a.b.retrieved": 3,
    }
    with pytest.raises(InputInvalid, match="expose_outputs"):
        made.exposed_outputs(given_, Relax, None, True)


def test_ports_inside_namespaces_are_included_and_excluded() -> None:
    made = ProcessSpec("Test")
    made.expose_inputs(Relax, namespace="relax", exclude=["energy.cutoff", "steps"])
    assert set(made.inputs.get_port("relax")) == {"energy", "structure", "metadata"}  # type: ignore[call-overload]
    assert list(made.inputs.get_port("relax.energy")) == ["spin", "metadata"]  # type: ignore[call-overload]
    made = ProcessSpec("Test")
    made.expose_inputs(Relax, include=["energy.cutoff"])
    assert list(made.inputs) == ["metadata", "energy"]
    assert list(made.inputs.get_port("energy")) == ["cutoff"]  # type: ignore[call-overload]
    with pytest.raises(InputInvalid):
        made.expose_inputs(Relax, include=["energy.cut"])
    with pytest.raises(InputInvalid, match="not both"):
        made.expose_inputs(Relax, include=["steps"], exclude=["energy"])
    with pytest.raises(InputInvalid, match="a list of names"):
        made.expose_inputs(Relax, exclude="steps")


def test_exposing_leaves_the_process_as_it_was() -> None:
    made = ProcessSpec("Test")
    made.expose_inputs(Relax, namespace="relax", namespace_options={"required": False, "help": "mine"})
    made.inputs.get_port("relax.steps").default = 99
    made.inputs.get_port("relax.energy.cutoff").required = True
    assert Relax.spec().inputs.get_port("steps").default == 10
    assert not Relax.spec().inputs.get_port("energy.cutoff").required
    assert values(gathered(made)) == {}
    with pytest.raises(InputInvalid, match="one of help"):
        made.expose_inputs(Relax, namespace="again", namespace_options={"requires": False})


def function(x: int, *, terms: list[Data], y: float = 1.0, **more: str) -> float:
    return x * y


@pytest.mark.parametrize("process", [function, calcfunction(function)])
def test_functions_are_exposed_with_lists_of_nodes(process: Any) -> None:
    made = ProcessSpec("Test")
    made.expose_inputs(process, namespace="f")
    found = gathered(made, f={"x": 1, "terms": [Int(1), Int(2)], "why": "because"})
    assert values(found) == {"f__x": 1, "f__terms__0": 1, "f__terms__1": 2, "f__y": 1.0, "f__why": "because"}
    again = made.inputs.nested(values(found), {})
    assert again == {"f": {"x": 1, "y": 1.0, "terms": [1, 2], "why": "because"}}


def test_a_shell_job_is_exposed_by_its_fields() -> None:
    job = ShellJob("grep -c {pattern} {poem}")
    made = ProcessSpec("Test")
    made.expose_inputs(job, namespace="grep")
    made.expose_outputs(job)
    assert set(made.inputs.get_port("grep")) == {"pattern", "poem", "code", "metadata"}  # type: ignore[call-overload]
    found = gathered(made, grep={"pattern": "a", "poem": "b"})
    assert sorted(found.nodes) == ["grep__pattern", "grep__poem"]
    assert made.exposed_inputs({"grep": {"pattern": "a"}}, job, "grep", True) == {"pattern": "a"}
    assert made.exposed_outputs({"stdout": 1}, job, None, True) == {"stdout": 1}


def test_what_has_no_ports_cannot_be_exposed() -> None:
    for wrong in (3, int, Int):
        with pytest.raises(InputInvalid, match="a WorkChain class, a CalcJob class or a function"):
            ProcessSpec("Test").expose_inputs(wrong)


# ---------------------------------------------------------------- exit codes and outlines


def test_exit_codes_by_label_and_status() -> None:
    made = ProcessSpec("Test")
    made.exit_code(310, "ERROR_COLD", "at {t} K", invalidates_cache=True)
    codes = made.exit_codes
    assert codes.ERROR_COLD == codes["ERROR_COLD"] == codes(310) == ExitCode(310, "at {t} K", True)
    assert codes.ERROR_COLD.format(t=3).message == "at 3 K"
    with pytest.raises(AttributeError, match="there are: ERROR_COLD"):
        codes.ERROR_WARM  # noqa: B018
    with pytest.raises(KeyError):
        codes(311)


@pytest.mark.parametrize(
    "wrong", [(0, "ERROR", "m"), (310, "no name", "m"), (310, "OTHER", "m"), (311, "ERROR", 3)]
)
def test_exit_codes_that_cannot_be(wrong: Any) -> None:
    made = ProcessSpec("Test")
    made.exit_code(310, "ERROR_COLD", "cold")
    with pytest.raises(InputInvalid):
        made.exit_code(*wrong)


def test_exit_codes_of_a_job_are_its_own_and_those_of_every_job() -> None:
    class Derived(Energy):
        COLD = ExitCode(311, "colder")
        WET = ExitCode(312, "wet")

    codes = Energy.exit_codes
    assert codes.COLD == Energy.COLD
    assert (codes.ERROR_SCHEDULER_OUT_OF_WALLTIME.status, codes(110)) == (120, OUT_OF_MEMORY)
    assert (Derived().exit_codes.COLD.message, Derived.exit_codes(312)) == ("colder", Derived.WET)
    assert "WET" not in codes
    given_ = [code for code in vars(exit_status).values() if isinstance(code, ExitCode)]
    assert set(OF_JOBS.values()) == set(given_) - {exit_status.CALL_FAILED}


def test_an_exit_code_of_the_class_is_known_without_running_it() -> None:
    assert Relax.exit_codes.ERROR_MISSING_OUTPUT.status == 11


def test_an_outline_can_be_read() -> None:
    def begin(self: object) -> None: ...
    def wanted(self: object) -> bool:
        return True

    made = ProcessSpec("Test")
    made.outline(
        begin, while_(wanted)(begin, if_(wanted)(begin).elif_(wanted)(return_(3)).else_(begin)), return_
    )
    assert made.get_outline().described() == (
        "begin\nwhile wanted:\n    begin\n    if wanted:\n        begin\n    elif wanted:\n        return 3\n"
        "    else:\n        begin\nreturn"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ProcessSpec("Test").outline(),
        lambda: ProcessSpec("Test").outline(lambda: None),
        lambda: ProcessSpec("Test").outline(lambda a, b: None),
        lambda: ProcessSpec("Test").outline("step"),  # type: ignore[arg-type]
        lambda: ProcessSpec("Test").outline(if_(lambda self: True)),  # type: ignore[arg-type]
        lambda: if_(lambda self: True)(),
        lambda: if_(3),  # type: ignore[arg-type]
        lambda: if_(lambda self: True)(lambda self: None).else_(return_).else_(return_),
        lambda: if_(lambda self: True)(lambda self: None).else_(return_).elif_(lambda self: True)(return_),
    ],
)
def test_outlines_that_cannot_be(wrong: Any) -> None:
    with pytest.raises(InputInvalid):
        wrong()


@pytest.fixture
def silicon() -> Structure:
    ase = pytest.importorskip("ase")
    return Structure(ase.Atoms("Si", cell=[3, 3, 3], pbc=True))
