"""How the arguments of a call become inputs by port, and where the call is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from grange.core.errors import GrangeError, InputInvalid
from grange.core.port import Ports
from grange.core.profile import Profile

_recording: ContextVar[Profile | None] = ContextVar("grange_recording", default=None)


@contextmanager
def recording(profile: Profile) -> Iterator[Profile]:
    """Record the calcfunctions and workflows called in this block, in this thread, in that profile."""
    token = _recording.set(profile)
    try:
        yield profile
    finally:
        _recording.reset(token)


def known_profile() -> Profile | None:
    """The profile of the innermost `with gr.recording(profile)`, if there is one."""
    return _recording.get()


def recording_profile(name: str, kind: str) -> Profile:
    """The profile of the innermost `with gr.recording(profile)`. Errors: GrangeError where there is none."""
    profile = known_profile()
    if profile is None:
        raise GrangeError(
            f"{name} is a {kind}, and there is no profile to record it in: call it inside "
            f"`with gr.recording(profile):`, or as {name}.run(profile, …)"
        )
    return profile


def given_profile(profile: Profile | None, what: str) -> Profile:
    """A profile that was given, else that of `with gr.recording(profile)`.

    Errors: GrangeError, InputInvalid.
    """
    profile = known_profile() if profile is None else profile
    if profile is None:
        raise GrangeError(
            f"{what}: there is no profile to record it in: give profile=gr.open(), or call it inside "
            "`with gr.recording(profile):`"
        )
    if not isinstance(profile, Profile):
        raise InputInvalid(f"{what}: profile", profile, "a profile, as gr.open() gives it")
    return profile


def bound(
    ports: Ports, label: str, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> dict[str, object]:
    """What is given, by port; what comes by position goes to the ports in their order.

    Errors: InputInvalid, InputMissing.
    """
    if len(args) > len(ports):
        raise InputInvalid(label, args, f"at most {len(ports)} inputs by position ({', '.join(ports)})")
    given = dict(zip(ports, args, strict=False))
    for name, value in kwargs.items():
        if name in given:
            raise InputInvalid(
                f"{label}: {name}", value, "each input once; this one was given by position too"
            )
        given[name] = value
    ports.require(given, label)
    return given
