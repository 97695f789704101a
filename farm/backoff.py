"""When a computer may be connected to again: pure functions of what happened so far.

A computer that bans who knocks too often, and one that is away for a night, are both served by knocking ever
more rarely; after some failures in a row a person is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from grange.farm.errors import AuthenticationRefused, HostKeyRefused


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often a computer is connected to.

    interval_s: the least time between the beginnings of two connections. base_s: the wait after the first
    failure; it doubles with each further one, up to longest_s. jitter: how much longer a wait may be, as
    a fraction of it, so that many who were cut off together do not come back together. failures: in a row,
    after which the computer is paused.
    """

    interval_s: float = 10.0
    base_s: float = 20.0
    longest_s: float = 600.0
    jitter: float = 0.25
    failures: int = 5


def wait_s(backoff: Backoff, failures: int, since_s: float | None, luck: float) -> float:
    """How long until the next connection may begin; 0 for at once.

    failures: in a row, up to now. since_s: seconds since the last one began, None for never. luck: from 0 to
    1, drawn once for each attempt.
    """
    if since_s is None:
        return 0.0
    apart = backoff.interval_s
    if failures > 0:
        grown = min(backoff.base_s * 2.0 ** min(failures - 1, 60), backoff.longest_s)
        apart = max(apart, grown * (1.0 + backoff.jitter * luck))
    return max(0.0, apart - since_s)


def pauses(backoff: Backoff, failures: int, error: Exception) -> bool:
    """Whether a computer is to be left alone after this many failures in a row, this being the last.

    A computer that does not know us, or is another one than it was, never mends by itself.
    """
    return failures >= backoff.failures or isinstance(error, AuthenticationRefused | HostKeyRefused)
