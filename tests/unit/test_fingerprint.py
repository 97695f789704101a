"""What makes two pieces of code equal."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from grange.core.fingerprint import fingerprint


def made(source: str, name: str = "f") -> object:
    """A function from a text, in a module of its own."""
    namespace: dict[str, object] = {"__name__": "made"}
    exec(compile(source, "<made>", "exec"), namespace)
    return namespace[name]


def test_equal_code_is_equal_and_other_code_is_not() -> None:
    assert fingerprint(made("def f(x): return x")) == fingerprint(made("def f(x): return x"))
    assert fingerprint(made("def f(x): return x")) != fingerprint(made("def f(x): return x + 1"))
    assert fingerprint(made("def f(x): return x + 1")) != fingerprint(made("def f(x): return x + 2"))


def test_defaults_constants_and_helpers_count() -> None:
    base = "A = 1\ndef g(x): return x\ndef f(x, y=1): return g(x) + A"
    for other in (
        base.replace("A = 1", "A = 2"),
        base.replace("y=1", "y=2"),
        base.replace("return x\n", "return -x\n"),
    ):
        assert fingerprint(made(base)) != fingerprint(made(other)), other


def test_closed_over_values_count() -> None:
    def closing(value: object) -> object:
        def inner(x: int) -> object:
            return (x, value)

        return inner

    assert fingerprint(closing(1)) == fingerprint(closing(1))
    assert fingerprint(closing(1)) != fingerprint(closing(2))


def test_version_counts() -> None:
    first, second = made("def f(x): return x"), made("def f(x): return x")
    second.version = "2"  # type: ignore[attr-defined]
    assert fingerprint(first) != fingerprint(second)


def test_functions_that_call_each_other_end() -> None:
    source = "def f(x): return g(x - 1) if x else 0\ndef g(x): return f(x - 1) if x else 1"
    assert fingerprint(made(source)) == fingerprint(made(source))


def test_what_is_bound_or_wrapped_or_held_counts() -> None:
    base = textwrap.dedent("""
        from functools import lru_cache, partial
        class Base:
            def value(self): return 1
        class Scale(Base):
            def __init__(self, by): self.by = by
            def times(self, x): return x * self.by * self.value()
        @lru_cache
        def remembered(x): return x + 10
        def power(x, p): return x ** p
        TABLE = {"square": lambda x: x * x}
        a = partial(power, p=2)
        b = Scale(2).times
        def c(x): return remembered(x)
        def d(x): return TABLE["square"](x)
        def e(x): return Scale(x)
        f = lambda x: x.real
        def g(x): return [(lambda y: y + 1)(x)]
    """)
    changes = {
        "a": ("p=2", "p=3"),
        "b": ("Scale(2)", "Scale(3)"),
        "c": ("x + 10", "x + 11"),
        "d": ("x * x", "x + x"),
        "e": ("return 1", "return 2"),
        "f": ("x.real", "x.imag"),
        "g": ("y + 1", "y + 2"),
    }
    for name, (old, new) in changes.items():
        assert fingerprint(made(base, name)) == fingerprint(made(base, name)), name
        assert fingerprint(made(base, name)) != fingerprint(made(base.replace(old, new), name)), name


def test_lambdas_of_one_line_are_told_apart() -> None:
    first, second, third = (lambda x: x + 1), (lambda x: x + 2), (lambda x: x + 1)
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) == fingerprint(third)


def test_it_is_the_same_in_every_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        from grange.core.fingerprint import fingerprint
        NAMES = {"a", "b", "c", "d"}
        class Job:
            version = "1"
            def prepare(self, inputs):
                return NAMES
        def f(x):
            return x in NAMES and Job
        print(fingerprint(f).hex(), fingerprint(Job).hex())
        """)
    )
    said = {
        subprocess.run(
            [sys.executable, script], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
