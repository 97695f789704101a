"""The workflows that are measured: what they compute is nothing, so that what is left is the engine."""

from __future__ import annotations

import grange as gr


@gr.calcfunction
def step(x: int) -> int:
    """A no-op that is recorded: one process, its input and its output."""
    return x + 1


def plus(x: int) -> int:
    """What the farm runs."""
    return x + 1


@gr.workflow
def sequence(x: int, steps: int) -> gr.Data:
    """So many steps, one after the other."""
    for _ in range(steps.value):
        x = step(x)
    return x


@gr.workflow
def leaf(x: int) -> gr.Data:
    """A child: one step."""
    return step(x)


@gr.workflow
def parallel(children: int) -> gr.Data:
    """So many children at once; then each result in turn."""
    futures = [gr.submit(leaf, x=number) for number in range(children.value)]
    last = None
    for future in futures:
        last = future.result()
    return last


@gr.workflow
def relay(rounds: int) -> gr.Data:
    """Waits for a child, makes a step, waits for the next."""
    x = rounds
    for _ in range(rounds.value):
        x = step(gr.submit(leaf, x=x).result())
    return x


@gr.workflow
def relay_by_farm(rounds: int) -> gr.Data:
    """The same; the farm runs the children."""
    x = rounds
    for _ in range(rounds.value):
        x = step(gr.submit(plus, x=x, executor="local").result())
    return x


@gr.workflow
def parent(x: int) -> gr.Data:
    """Waits for a calculation of the farm."""
    return gr.submit(plus, x=x, executor="local", cache=False).result()
