"""A team: threads that wait for a store side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from grange.repository.halt import Halt

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor
    from types import TracebackType

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Team:
    """At most so many calls at once; a team of one calls in the thread that asks, and starts none.

    Threads are started as they are needed, and have ended when the `with` block has. Where it ends by an
    error, or by Ctrl-C, they do not try again what fails: nobody waits for it any more.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._threads: ThreadPoolExecutor | None = None
        self._halt = Halt()

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            if error is not None:
                self._halt.call()
            self._threads.shutdown(wait=True, cancel_futures=True)

    def start(self, call: Callable[[], Outcome]) -> Future[Outcome]:
        """Make a call; in a team of one it is made when this returns."""
        # Here, because it takes longer to import than all else of the repository.
        from concurrent.futures import Future, ThreadPoolExecutor

        if self.size > 1:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="grange-store")
            return self._threads.submit(self._reached, call)
        future: Future[Outcome] = Future()
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)
        return future

    def _reached(self, call: Callable[[], Outcome]) -> Outcome:
        with self._halt.reaching():
            return call()

    def map(self, call: Callable[[Item], Outcome], items: Iterable[Item]) -> Iterator[Outcome]:
        """What a call makes of each item, in the order of the items; as many ahead as the team is large.

        Errors: what a call raises, when its turn comes.
        """
        if self.size == 1:
            yield from map(call, items)
            return
        under_way: deque[Future[Outcome]] = deque()
        for item in items:
            under_way.append(self.start(lambda item=item: call(item)))  # type: ignore[misc]
            if len(under_way) >= 2 * self.size:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
