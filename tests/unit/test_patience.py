"""What is said while a command waits for a store: not at once, and not all the time."""

from __future__ import annotations

import pytest

from grange.cli import patience
from grange.repository.errors import StoreUnavailable


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    monkeypatch.setattr(patience.time, "monotonic", lambda: now)
    told = patience.Patience()
    error = StoreUnavailable("nobody listens there")
    said = []
    for now in (1000, 1002, 1004, 1005, 1010, 1020, 1025, 1100, 1102, 1104):  # noqa: B007
        told(error, 1.0)
        said.append(capsys.readouterr().err)
    line = "waiting for the store: nobody listens there\n"
    assert said == ["", "", line, "", "", "", line, "", "", line]
