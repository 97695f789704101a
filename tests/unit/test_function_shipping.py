"""How functions travel: by reference where a fresh interpreter finds them, else by value, or not at all."""

from __future__ import annotations

import functools
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from grange.farm import FunctionNotShippable, ship


def of_this_module(x: int) -> int:
    """A function to ship."""
    return x + 1


def keep_wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        raise AssertionError("the wrapper is not what is shipped")

    return wrapper


@keep_wrapped
def decorated(x):
    return 2 * x


class Machine:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def run(self) -> int:
        return 1

    @staticmethod
    def twice(x: int) -> int:
        return 2 * x


LOCK = threading.Lock()


def uses_a_lock() -> None:
    with LOCK:
        pass


def test_by_reference() -> None:
    shipped = ship(of_this_module)
    assert (shipped.module, shipped.qualname, shipped.pickle) == (__name__, "of_this_module", None)
    assert os.path.realpath(shipped.path) == str(Path(__file__).resolve().parent)
    assert "return x + 1" in shipped.source
    assert shipped.name == "of_this_module"


@pytest.mark.parametrize("function", [math.sqrt, json.dumps, os.path.join, pytest.approx])
def test_what_is_installed_needs_no_path(function: object) -> None:
    shipped = ship(function)  # type: ignore[arg-type]
    assert (shipped.pickle, shipped.path) == (None, "")


def test_static_methods_go_by_reference() -> None:
    assert ship(Machine.twice).qualname == "Machine.twice"
    assert ship(Machine.twice).pickle is None


def test_what_a_decorator_keeps_as_wrapped_goes_by_reference() -> None:
    shipped = ship(decorated.__wrapped__)
    assert (shipped.pickle, shipped.qualname) == (None, "decorated.__wrapped__")


def test_local_functions_go_by_value() -> None:
    offset = 5

    def local(x: int) -> int:
        return x + offset

    shipped = ship(local)
    assert shipped.pickle is not None
    assert pickle.loads(shipped.pickle)(1) == 6
    assert "return x + offset" in shipped.source
    assert shipped.source.startswith("def local")


def test_lambdas_and_partials_go_by_value() -> None:
    assert pickle.loads(ship(lambda x: x * 3).pickle or b"")(2) == 6
    shipped = ship(functools.partial(of_this_module, x=4))
    assert shipped.name == "of_this_module"
    assert pickle.loads(shipped.pickle or b"")() == 5


def test_functions_of_a_script_go_by_value_with_the_folder_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def aid(): return 7\n")
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            import helper
            from grange.farm import ship

            def work():
                return helper.aid()

            shipped = ship(work)
            helped = ship(helper.aid)
            print(shipped.pickle is not None, shipped.path)
            print(helped.pickle is None, helped.path)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", str(tmp_path), "True", str(tmp_path)]


def test_a_module_that_no_other_interpreter_finds(tmp_path: Path) -> None:
    import importlib.util

    path = tmp_path / "hidden.py"
    path.write_text("def inner(): return 3\n")
    spec = importlib.util.spec_from_file_location("hidden_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # As long as it is no known module, cloudpickle too sends the function itself.
    assert ship(module.inner).pickle is not None
    assert pickle.loads(ship(module.inner).pickle or b"")() == 3


def generator():
    yield 1


async def coroutine() -> None:
    return None


def bound_file() -> object:
    file = open(__file__)  # noqa: SIM115

    def reads() -> str:
        return file.read()

    return reads


def bound_generator() -> object:
    numbers = (n for n in range(3))

    def takes() -> int:
        return next(numbers)

    return takes


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (generator, "generator"),
        (coroutine, "coroutine"),
        (bound_file(), "'file' is a _io.TextIOWrapper"),
        (bound_generator(), "'numbers' is a generator"),
        (Machine().run, "Machine"),
        (functools.partial(of_this_module, LOCK), "bound argument 0 is a _thread.lock"),
        (5, "int"),
    ],
)
def test_refused_with_the_culprit(function: object, words: str) -> None:
    with pytest.raises(FunctionNotShippable) as caught:
        ship(function)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert caught.value.reason in str(caught.value)


def test_a_global_lock_is_named_when_the_function_goes_by_value() -> None:
    assert ship(uses_a_lock).pickle is None

    def local() -> None:
        uses_it = LOCK
        uses_it.acquire()

    with pytest.raises(FunctionNotShippable, match=r"'LOCK' is a _thread\.lock"):
        ship(local)


def test_its_representation_is_short() -> None:
    assert len(repr(ship(lambda: 1))) < 250
