"""Numbers, sizes and times as people read them."""

from __future__ import annotations

from datetime import datetime


def number(count: int) -> str:
    """12345 → 12,345."""
    return f"{count:,}"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """1 → "1 node", 2 → "2 nodes"."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def size(count: int | None) -> str:
    """Bytes → "12.3 MB" (decimal units); "?" where it is not known."""
    if count is None:
        return "?"
    if count < 1000:
        return f"{count} B"
    value, units = count / 1000, ["TB", "GB", "MB", "kB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop()
    return f"{value:.1f} {units[-1]}" if value < 99.95 else f"{value:.0f} {units[-1]}"


def duration(seconds: float | None) -> str:
    """Seconds → "12 ms", "3.4 s", "2 min 5 s", "3 h 20 min", "4 d 2 h"; "" where there is none."""
    if seconds is None:
        return ""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "0 ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if not hours:
        return _two(minutes, "min", seconds_left, "s")
    return _two(days, "d", hours_left, "h") if days else _two(hours, "h", minutes_left, "min")


def _two(large: int, unit: str, small: int, subunit: str) -> str:
    return f"{large} {unit}" + (f" {small} {subunit}" if small else "")


def rate(per_s: float) -> str:
    """Calls a second → "3,370 calls/s", "12.3 calls/s", "0.0412 calls/s"."""
    return f"{per_s:,.0f} calls/s" if per_s >= 99.5 else f"{per_s:.3g} calls/s"


def moment(time: datetime | None) -> str:
    """A time in the zone of this machine, to the second; "" where there is none."""
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
