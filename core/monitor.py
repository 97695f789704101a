"""Monitors as commands have them: checked, with functions made ready to travel, and as they are recorded."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import lru_cache
from math import inf
from typing import Any

from grange.core.errors import InputInvalid
from grange.core.json_value import checked_text
from grange.farm.function import ship
from grange.farm.monitor import Monitor
from grange.farm.task import ShippedFunction

#: How often a file is looked at, at most; an answer takes some hundredths of a second. Units: seconds.
SHORTEST_S = 0.1
LARGEST_TAIL_BYTES = 8 << 20


def checked_monitors(monitors: object, where: str) -> tuple[Monitor, ...]:
    """Monitors that the farm can take.

    Errors: InputInvalid, naming what is wrong; FunctionNotShippable.
    """
    if isinstance(monitors, Monitor | str) or not isinstance(monitors, Sequence):
        raise InputInvalid(where, monitors, "a list of gr.Monitor(file, pattern or function)")
    return tuple(_checked(monitor, f"{where}[{place}]") for place, monitor in enumerate(monitors))


def _checked(monitor: object, where: str) -> Monitor:
    if not isinstance(monitor, Monitor):
        raise InputInvalid(where, monitor, "a gr.Monitor(file, pattern or function)")
    for name, path in (("file", monitor.file), ("stop_file", monitor.stop_file or "none")):
        if not isinstance(path, str) or any(part in ("", ".", "..") for part in path.split("/")):
            raise InputInvalid(f"{where}: {name}", path, "a path inside the program's directory")
        checked_text(path, f"{where}: {name}")
    for name in ("message", "stop_text"):
        checked_text(getattr(monitor, name), f"{where}: {name}")
    for name, least in (("every_s", SHORTEST_S), ("grace_s", 0), ("timeout_s", SHORTEST_S)):
        seconds = getattr(monitor, name)
        if type(seconds) not in (int, float) or not least <= seconds < inf:
            raise InputInvalid(f"{where}: {name}", seconds, f"a number of seconds, {least:g} or more")
    if type(monitor.tail_bytes) is not int or not 0 < monitor.tail_bytes <= LARGEST_TAIL_BYTES:
        raise InputInvalid(
            f"{where}: tail_bytes", monitor.tail_bytes, f"an int from 1 to {LARGEST_TAIL_BYTES}"
        )
    if isinstance(monitor.look, str):
        checked_text(monitor.look, f"{where}: look")
        try:
            re.compile(monitor.look, re.MULTILINE)
        except re.error as error:
            raise InputInvalid(f"{where}: look", monitor.look, f"a regular expression ({error})") from None
        return monitor
    if isinstance(monitor.look, ShippedFunction):
        return monitor
    if not callable(monitor.look):
        raise InputInvalid(f"{where}: look", monitor.look, "a regular expression, or a function of the text")
    return replace(monitor, look=_shipped(monitor.look))


@lru_cache(maxsize=256)
def _shipped(function: Any) -> ShippedFunction:
    """Made once for the many calls that share it."""
    return ship(function)


def described(monitor: Monitor) -> dict[str, Any]:
    """What a process node says of a checked monitor: what it looks for, and what is not as usual."""
    record: dict[str, Any] = {
        field.name: value
        for field in fields(monitor)
        if field.name != "look" and (value := getattr(monitor, field.name)) != field.default
    }
    if isinstance(monitor.look, ShippedFunction):
        record["function"] = f"{monitor.look.module}.{monitor.look.qualname}"
    else:
        record["pattern"] = monitor.look
    return record


def recorded(monitor: Monitor) -> dict[str, Any]:
    """All that there is of a checked monitor, as JSON."""
    record = described(monitor)
    if isinstance(monitor.look, ShippedFunction):
        pickle = monitor.look.pickle
        encoded = None if pickle is None else base64.b64encode(pickle).decode()
        record["function"] = {**asdict(monitor.look), "pickle": encoded}
    return record


def from_record(record: Mapping[str, Any]) -> Monitor:
    """The monitor again, from what recorded() gave."""
    given = {name: value for name, value in record.items() if name not in ("pattern", "function")}
    function = record.get("function")
    if function is None:
        return Monitor(look=record["pattern"], **given)
    pickle = None if function["pickle"] is None else base64.b64decode(function["pickle"])
    return Monitor(look=ShippedFunction(**{**function, "pickle": pickle}), **given)
