"""The public names of the farm, as a list that changes on purpose."""

from __future__ import annotations

import subprocess
import sys

import grange.farm


def test_the_public_names_are_these() -> None:
    assert grange.farm.__all__ == [
        "Batch",
        "CommandTask",
        "Executor",
        "ExecutorUnavailable",
        "FarmError",
        "FunctionNotShippable",
        "FunctionTask",
        "LocalPool",
        "Outcome",
        "Resources",
        "ResultMalformed",
        "ResultPack",
        "ShippedFunction",
        "Sizing",
        "SpoolUnwritable",
        "Task",
        "TaskRefused",
        "TaskResult",
        "read_result_pack",
        "ship",
    ]
    assert all(hasattr(grange.farm, name) for name in grange.farm.__all__)


def test_importing_it_brings_in_the_standard_library_alone() -> None:
    script = (
        "import sys; before = set(sys.modules); import grange.farm; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} "
        "- set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["grange"]
