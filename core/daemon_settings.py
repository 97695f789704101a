"""What profile.toml says of the daemon, in its table [daemon]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """The habits of a daemon.

    default_workers: how many workers are started where nobody says how many. timeout: how long calls of
    DaemonClient and `grange daemon` wait for it. grace_s: how long its processes have to bring to an end what
    they are at, before they are killed.
    Units: seconds.
    """

    default_workers: int = 1
    timeout: float = 60.0
    grace_s: float = 30.0

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> DaemonSettings:
        """Of a table of profile.toml. Errors: ValueError, with key and what was expected."""
        known = [field.name for field in fields(cls)]
        for key in table:
            if key not in known:
                raise ValueError(f"unknown key {key}; known are {', '.join(known)}")
        workers = table.get("default_workers", cls().default_workers)
        if type(workers) is not int or not 0 <= workers <= 1024:
            raise ValueError(f"default_workers = {workers!r}: expected a whole number from 0 to 1024")

        def seconds(key: str, default: float) -> float:
            value = table.get(key, default)
            if type(value) not in (int, float) or not 0 <= value <= 1e6:  # type: ignore[operator]
                raise ValueError(f"{key} = {value!r}: expected seconds")
            return float(value)  # type: ignore[arg-type]

        return cls(workers, seconds("timeout", cls().timeout), seconds("grace_s", cls().grace_s))
