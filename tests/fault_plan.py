"""What goes wrong between an S3 client and its server, and with which requests (fault_proxy.py)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a plan sees it. number: how many came before it. target: path and query, as sent."""

    number: int
    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return int(self.headers.get("content-length", 0))


@dataclass(frozen=True, slots=True)
class Answer:
    """The server is not asked. code: S3's word for it."""

    status: int = 503
    code: str = "SlowDown"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset after so many bytes of the request's body ("up") or the answer's ("down")."""

    after: int = 0
    way: str = "down"


@dataclass(frozen=True, slots=True)
class Cut:
    """The answer ends in order after so many bytes of its body: it is shorter than it said."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class Lose:
    """The server does what is asked, but its answer is lost: by a reset, or another answer comes instead."""

    instead: Answer | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing comes any more after so many bytes of the body, until the client gives up or the proxy ends."""

    after: int = 0
    way: str = "down"


@dataclass(frozen=True, slots=True)
class Delay:
    """Everything comes, later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Corrupt:
    """One byte of the body is another one."""

    at: int = 0
    way: str = "down"


Fault = Answer | Reset | Cut | Lose | Stall | Delay | Corrupt
Plan = Callable[[Request], Fault | None]


def nothing(_: Request) -> Fault | None:
    """The plan by which nothing goes wrong."""
    return None


def every(nth: int, *faults: Fault, where: Callable[[Request], bool] = lambda _: True) -> Plan:
    """A plan: every nth of the requests for which where() holds gets the next of the faults, in turn."""
    lock, count = threading.Lock(), 0

    def plan(request: Request) -> Fault | None:
        nonlocal count
        if not where(request):
            return None
        with lock:
            count += 1
            return faults[(count // nth - 1) % len(faults)] if count % nth == 0 else None

    return plan


def first(times: int, fault: Fault, where: Callable[[Request], bool] = lambda _: True) -> Plan:
    """A plan: so many of the requests for which where() holds get the fault, then none does."""
    lock, left = threading.Lock(), times

    def plan(request: Request) -> Fault | None:
        nonlocal left
        with lock:
            if left and where(request):
                left -= 1
                return fault
        return None

    return plan


def by_chance(share: float, faults: Callable[[random.Random, Request], Fault], seed: int) -> Plan:
    """A plan: that share of the requests gets a fault that faults() draws."""
    lock, chance = threading.Lock(), random.Random(seed)

    def plan(request: Request) -> Fault | None:
        with lock:
            return faults(chance, request) if chance.random() < share else None

    return plan
