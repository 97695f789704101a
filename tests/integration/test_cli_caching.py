"""`grange caching` and `grange node hash` on a real profile."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import grange as gr
from grange.cli.entry import run
from grange.core.profile import Profile

TYPE = f"{__name__}.power"


def power(base: int, exponent: int) -> int:
    return base**exponent  # type: ignore[no-any-return]


def failing(base: int) -> int:
    return gr.ExitCode(301, "never", invalidates_cache=True)  # type: ignore[return-value]


Say = Callable[..., str]


@pytest.fixture
def say(profile: Profile, capsys: pytest.CaptureFixture[str]) -> Say:
    """What a command says: say("caching", "show"); status: what it has to end with."""

    def said(*words: object, status: int = 0) -> str:
        ended = run(["--home", str(profile.home), *map(str, words)])
        shown = capsys.readouterr()
        assert ended == status, shown.err
        return shown.out + shown.err

    return said


def mapped(profile: Profile, name: str, function: Any = power, **inputs: Any) -> list[int]:
    """A campaign that was run; the ids of its processes."""
    campaign = gr.Campaign(name, profile)
    campaign.map(function, **inputs)
    campaign.run(progress=False)
    return campaign.results()["process"].tolist()


def test_why_tells_who_answered(profile: Profile, say: Say) -> None:
    (first,) = mapped(profile, "first", base=2, exponent=3)
    (second,) = mapped(profile, "second", base=2, exponent=3)
    (other,) = mapped(profile, "other", base=2, exponent=4)
    assert f"it was answered by the equal process {first}" in say("caching", "why", "second/0")
    told = say("caching", "why", first)
    assert "equal: 1 process" in told
    assert f"answered by {first}" in told
    told = json.loads(say("node", "hash", other, "--json"))
    assert [one["what"] for one in told["differences"]] == ["exponent"]
    assert told["compared_with"]["id"] == second
    assert told["said"] == f"no other process has the same key; process {second} differs in exponent"
    told = say("caching", "why", first, other)
    assert "what differs" in told
    assert "exponent" in told
    assert "base " not in told.partition("what differs")[2]


def test_why_tells_that_nobody_was_asked(profile: Profile, say: Say) -> None:
    mapped(profile, "first", base=2, exponent=3)
    mapped(profile, "second", base=2, exponent=3, cache=False)
    assert "no other was to answer it: caching was off for it" in say("caching", "why", "second/0")
    mapped(profile, "failing", failing, base=1)
    assert "it answers no other: it failed" in say("caching", "why", "failing/0")


def test_hash_of_data_is_that_of_its_content(profile: Profile, say: Say) -> None:
    one, two, three = gr.Int(1), gr.Int(1), gr.Int(2)
    profile.store(one, two, three)
    hashes = [say("node", "hash", node.id).strip() for node in (one, two, three)]
    assert hashes[0] == one.content_hash().hex() == hashes[1] != hashes[2]
    assert "expected a process" in say("node", "hash", one.id, two.id, status=1)
    assert "no node has the id 999999" in say("node", "hash", 999999, status=1)


def test_what_is_invalidated_answers_no_more_until_it_is_valid_again(profile: Profile, say: Say) -> None:
    def reused(name: str) -> int:
        campaign = gr.Campaign(name, profile)
        campaign.map(power, base=[1, 2], exponent=3)
        return campaign.run(progress=False).reused

    assert reused("first") == 0
    assert "2 processes will answer" in say("caching", "invalidate", "--campaign", "first")
    assert "0 processes will answer" in say("caching", "invalidate", "--campaign", "first")
    assert reused("second") == 0
    say("caching", "invalidate", "second/0")
    assert reused("third") == 1
    say("caching", "invalidate", "-C", "third")
    assert "1 process may answer" in say("caching", "validate", "second/0")
    assert reused("fourth") == 2
    assert "name some, or a campaign" in say("caching", "invalidate", status=1)
    assert "no campaign" in say("caching", "invalidate", "-C", "nothing", status=1).lower()


def test_show_tells_what_the_profile_says(profile: Profile, say: Say) -> None:
    assert "enabled" in say("caching", "show")
    path = profile.home / "profile.toml"
    path.write_text(path.read_text() + '\n[caching]\ndefault = false\nenabled = ["*.power"]\n')
    told = say("caching", "show")
    assert "disabled" in told
    assert "*.power" in told
    assert say("caching", "show", TYPE, "a.b").splitlines() == [
        f"{TYPE}: answered by equal ones",
        "a.b: always computed",
    ]
