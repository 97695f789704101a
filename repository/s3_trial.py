"""A trial of a bucket: everything that grange asks of one, once, with an object of its own."""

from __future__ import annotations

import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from grange.repository.errors import StoreError
from grange.repository.s3_store import S3Store

#: Where objects of trials lie: apart from those that are kept.
FOLDER = "trial"
_CONTENT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing that was tried. problem: why it does not work; "" where it does.

    needed: whether grange can do without. Units: duration_s in seconds.
    """

    name: str
    duration_s: float
    problem: str = ""
    needed: bool = True


def trials(store: S3Store) -> Iterator[Trial]:
    """Try one thing after the other, until something that is needed does not work; nothing is left behind."""
    content = os.urandom(_CONTENT_BYTES)
    name = f"{FOLDER}/{os.urandom(8).hex()}"
    steps: list[tuple[str, Callable[[], str], bool]] = [
        ("write an object", lambda: _no(store.put_if_absent(name, content), "it was there already"), True),
        ("read it", lambda: _no(b"".join(store.read(name)) == content, "other bytes came back"), True),
        (
            "read ranges of it",
            lambda: _no(
                store.get_ranges(name, [(7, 100), (4000, 96)]) == [content[7:107], content[4000:]],
                "other bytes came back",
            ),
            True,
        ),
        (
            "list it",
            lambda: _no([info.name for info in store.list(name)] == [name], "it was not there"),
            True,
        ),
        ("write one in parts", lambda: _no(store.try_parts(f"{name}.parts", content), "it was there"), True),
        (
            "make it young again",
            lambda: _no(not store.put_if_absent(name, content), "it was made twice"),
            True,
        ),
        (
            "refuse a second one",
            lambda: _no(
                store.refuses_second(), "the server does not; grange looks first, which costs a request more"
            ),
            False,
        ),
        ("read it by a signed URL", lambda: _signed(store, name, content), False),
        ("delete them", lambda: _deleted(store, name), True),
    ]
    try:
        for what, step, needed in steps:
            began = time.monotonic()
            try:
                problem = step()
            except StoreError as error:
                problem = str(error)
            yield Trial(what, time.monotonic() - began, problem, needed)
            if problem and needed:
                return
    finally:
        _clean(store, name)


def _no(well: bool, problem: str) -> str:
    return "" if well else problem


def _deleted(store: S3Store, name: str) -> str:
    store.delete([name, f"{name}.parts"])
    return _no(store.head(name) is None, "it is still there")


def _clean(store: S3Store, name: str) -> None:
    try:
        store.delete([name, f"{name}.parts"])
    except StoreError:  # that was said already
        return


def _signed(store: S3Store, name: str, content: bytes) -> str:
    [url] = store.sign_get([name], 60)
    trusted = ssl.create_default_context()
    if store.settings.ca_file:
        trusted.load_verify_locations(store.settings.ca_file)
    asked = urllib.request.Request(url, headers={"Range": "bytes=10-19"})  # noqa: S310 - of our own making
    try:
        with urllib.request.urlopen(asked, timeout=30, context=trusted) as answer:  # noqa: S310
            return _no(answer.read() == content[10:20], "other bytes came back")
    except (urllib.error.URLError, OSError) as error:
        return f"it cannot be read so: {getattr(error, 'reason', error)}"
