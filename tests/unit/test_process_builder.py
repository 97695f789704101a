"""Builders: inputs that are filled in attribute by attribute, and what is asked for with them."""

from __future__ import annotations

from typing import Any

import pytest

from grange.core.call_metadata import CallMetadata, asked
from grange.core.data import Int, Str
from grange.core.errors import InputInvalid
from grange.core.outline import return_
from grange.core.process_builder import ProcessBuilder
from grange.core.process_spec import ProcessSpec
from grange.core.workchain import WorkChain
from grange.farm.task import Resources


class Relax(WorkChain):
    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        super().define(spec)
        spec.input("steps", valid_type=Int)
        spec.input("energy.cutoff", valid_type=float, default=30.0)
        spec.input_namespace("pseudos", dynamic=True, valid_type=Str)
        spec.outline(return_)


def test_what_is_filled_in_is_what_is_asked_for() -> None:
    builder = Relax.get_builder()
    builder.steps = Int(3)
    builder.energy.cutoff = 40
    builder.pseudos.Si = "si.upf"
    builder.pseudos = {"Ge": "ge.upf"}
    builder.metadata.label = "first"
    call = asked(builder, {"steps": 5}, executor="lumi")
    assert call.runnable is Relax
    assert call.inputs == {"steps": 5, "energy": {"cutoff": 40}, "pseudos": {"Ge": "ge.upf"}}
    assert call.how == CallMetadata("first", "CALL", None, "lumi", None)


def test_what_cannot_be_is_refused_at_once() -> None:
    builder = Relax.get_builder()
    for assign, said in (
        (lambda: setattr(builder, "stepps", 3), "did you mean 'steps'"),
        (lambda: setattr(builder, "steps", "three"), "Relax.steps: expected int"),
        (lambda: setattr(builder.energy, "cutoff", "high"), "Relax.energy.cutoff"),
        (lambda: setattr(builder, "energy", 3), "a dict of its ports"),
        (lambda: setattr(builder.pseudos, "Si", 3), "Relax.pseudos.Si"),
        (lambda: setattr(builder.metadata, "label", 3), "Relax.metadata.label"),
    ):
        with pytest.raises(InputInvalid, match=said):
            assign()
    with pytest.raises(AttributeError, match="no port 'cutoff'"):
        builder.cutoff  # noqa: B018
    assert builder._inputs() == {}


def test_dicts_are_added_and_things_taken_back() -> None:
    builder = Relax.get_builder()
    builder._merge({"energy": {"cutoff": 50.0}, "pseudos": {"Si": "a"}})
    builder._merge({"pseudos": {"Ge": "b"}})
    assert builder._inputs() == {"energy": {"cutoff": 50.0}, "pseudos": {"Si": "a", "Ge": "b"}}
    del builder.energy.cutoff
    builder.pseudos.Si = None
    assert builder._inputs() == {"pseudos": {"Ge": "b"}}
    assert {"steps", "energy", "pseudos", "metadata"} <= set(dir(builder))


def test_a_function_with_a_parameter_metadata_takes_it_as_an_input() -> None:
    def own(metadata: dict[str, Any]) -> int:
        return 1

    assert asked(own, {"metadata": {"a": 1}}).inputs == {"metadata": {"a": 1}}

    def none() -> int:
        return 1

    assert asked(none, {"metadata": {"label": "a"}}, label="b").how.label == "b"
    assert asked(none, {"metadata": {"label": "a"}}).how.label == "a"
    builder = ProcessBuilder(none)
    builder.metadata.resources = Resources(cpus=4)
    assert asked(builder, {}).how.resources == Resources(cpus=4)
    assert ProcessBuilder(none).process_class is none


def test_a_workflow_has_no_resources_and_no_cache_of_its_own() -> None:
    for wrong in ({"resources": Resources()}, {"cache": False}):
        with pytest.raises(InputInvalid, match="it is said where it submits its calculations"):
            asked(Relax, {"steps": 1}, **wrong)  # type: ignore[arg-type]
    for name in ("resources", "disable_cache", "options"):
        with pytest.raises(InputInvalid, match=f"metadata.{name}: expected one of label"):
            asked(Relax, {"metadata": {name: {}}})
    assert asked(Relax, {"metadata": {"computer": "lumi"}}).how.executor == "lumi"
