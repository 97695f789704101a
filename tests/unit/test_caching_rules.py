"""Who has the last word on caching."""

from __future__ import annotations

import contextlib
from contextvars import copy_context

import pytest

import grange as gr
from grange.core.caching import (
    Caching,
    CachingRules,
    caching_of,
    enter_recorded,
    fits,
    recorded_blocks,
)
from grange.core.errors import InputInvalid

TYPE = "my_package.jobs.Energy"


def of(rules: CachingRules = CachingRules(), **more: bool | None) -> Caching:  # noqa: B008 – frozen
    return caching_of(rules, TYPE, "Energy", **more)  # type: ignore[arg-type]


def test_equal_calls_share_unless_somebody_says_otherwise() -> None:
    assert of() is Caching.SHARED
    assert of(CachingRules(default=False)) is Caching.FRESH
    assert of(declared=False) is Caching.PRIVATE


def test_what_the_call_itself_says_is_the_last_word() -> None:
    with gr.disable_caching():
        assert of(CachingRules(default=False), declared=False, wanted=True) is Caching.SHARED
    with gr.enable_caching():
        assert of(wanted=False) is Caching.PRIVATE


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        (TYPE, True),
        ("Energy", True),
        ("my_package.*", True),
        ("*", True),
        ("*.Energy", True),
        ("my_package", False),
        ("Ener", False),
        ("my_packageXjobs.Energy", False),
        ("m.*", False),
    ],
)
def test_patterns_mean_whole_types_or_names(pattern: str, meant: bool) -> None:
    assert fits(pattern, TYPE, "Energy") is meant


def test_the_pattern_that_tells_most_wins() -> None:
    rules = CachingRules(enabled=("my_package.jobs.*",), disabled=("my_package.*",))
    assert of(rules) is Caching.SHARED
    rules = CachingRules(enabled=("my_package.*",), disabled=("my_package.jobs.*",))
    assert of(rules) is Caching.FRESH
    assert of(CachingRules(enabled=("*.Energy*",), disabled=("*.Energy",))) is Caching.FRESH
    assert of(CachingRules(default=False, enabled=("Energy",))) is Caching.SHARED


def test_a_pattern_of_the_profile_is_stronger_than_the_class() -> None:
    assert of(CachingRules(enabled=("Energy",)), declared=False) is Caching.SHARED


def test_the_innermost_block_that_means_it_wins_and_ends_with_itself() -> None:
    with gr.disable_caching():
        assert of() is Caching.FRESH
        with gr.enable_caching("*.Energy"):
            assert of() is Caching.SHARED
            with gr.disable_caching("Other"):
                assert of() is Caching.SHARED
        assert of() is Caching.FRESH
        with contextlib.suppress(RuntimeError), gr.enable_caching():
            assert of() is Caching.SHARED
            raise RuntimeError
        assert of() is Caching.FRESH
    assert of() is Caching.SHARED


def test_enabling_everything_does_not_mean_what_its_class_has_excepted() -> None:
    with gr.enable_caching():
        assert of(declared=False) is Caching.PRIVATE
    with gr.enable_caching("Energy"):
        assert of(declared=False) is Caching.SHARED


@pytest.mark.parametrize("wrong", ["", " Energy", "a\nb", 3])
def test_what_is_no_pattern_is_refused(wrong: object) -> None:
    for block in (gr.enable_caching, gr.disable_caching):
        with pytest.raises(InputInvalid, match=block.__name__), block(wrong):  # type: ignore[arg-type]
            pass
    assert of() is Caching.SHARED


def test_blocks_go_along_with_a_workflow() -> None:
    assert recorded_blocks() == {}
    with gr.disable_caching(), gr.enable_caching("Energy"):
        attributes = recorded_blocks()

    def there() -> tuple[Caching, Caching]:
        enter_recorded(attributes)
        return of(), caching_of(CachingRules(), "other.Thing", "Thing")

    assert copy_context().run(there) == (Caching.SHARED, Caching.FRESH)
    assert of() is Caching.SHARED

    def elsewhere() -> Caching:
        enter_recorded({})
        return of()

    with gr.disable_caching():
        assert copy_context().run(elsewhere) is Caching.SHARED
