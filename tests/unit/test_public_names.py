"""The front door: which names there are, that each explains itself, and that importing costs nothing."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import grange

NAMES = [
    "Array",
    "AttributeDict",
    "BaseRestartWorkChain",
    "Bool",
    "CalcFunction",
    "CalcJob",
    "CalculationFailed",
    "Campaign",
    "CampaignInterrupted",
    "Code",
    "Command",
    "ContainerizedCode",
    "DaemonClient",
    "DaemonException",
    "DaemonNotRunningException",
    "DaemonTimeoutException",
    "Data",
    "Dict",
    "DryRun",
    "Enum",
    "ExitCode",
    "Float",
    "Folder",
    "Future",
    "GrangeError",
    "Group",
    "InstalledCode",
    "Int",
    "Link",
    "LinkType",
    "List",
    "Monitor",
    "PortableCode",
    "ProcessFailed",
    "ProcessHandlerReport",
    "Profile",
    "ProfileLocked",
    "RemoteFolder",
    "RemoteStash",
    "RemoteStashArchive",
    "RemoteStashFolder",
    "Resources",
    "RunInterrupted",
    "ShellJob",
    "SingleFile",
    "Stash",
    "Str",
    "Structure",
    "ToContext",
    "WorkChain",
    "Workflow",
    "append_",
    "calcfunction",
    "disable_caching",
    "dry_run",
    "enable_caching",
    "fixed",
    "if_",
    "import_calculation",
    "import_calculations",
    "kill_processes",
    "open",
    "pause_processes",
    "play_processes",
    "process_handler",
    "recording",
    "return_",
    "run",
    "run_get_node",
    "submit",
    "submit_many",
    "wait",
    "while_",
    "workflow",
    "workfunction",
]

#: What takes longer to import than a command line may take.
HEAVY = {
    "alembic", "ase", "click", "cloudpickle", "dask", "hyperqueue", "matplotlib", "msgspec", "numpy",
    "pandas", "psycopg2", "pyarrow", "rich", "scipy", "sqlalchemy",
}  # fmt: skip


def loaded_after(statement: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after a statement."""
    told = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in json.loads(told.stdout.splitlines()[-1])}


def test_these_are_the_names() -> None:
    assert grange.__all__ == NAMES
    assert dir(grange) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_there_and_explains_itself(name: str) -> None:
    found = getattr(grange, name)
    assert inspect.getdoc(found), f"grange.{name} has no docstring"
    assert found.__module__.startswith("grange."), f"grange.{name} is of {found.__module__}"


@pytest.mark.parametrize("name", NAMES)
def test_each_public_method_explains_itself(name: str) -> None:
    found = getattr(grange, name)
    if not isinstance(found, type):
        return
    for member, value in vars(found).items():
        if not member.startswith("_") and (
            inspect.isfunction(value) or isinstance(value, property | classmethod)
        ):
            assert inspect.getdoc(getattr(found, member)), f"grange.{name}.{member} has no docstring"


def test_a_star_import_gives_them_all() -> None:
    given: dict[str, object] = {}
    exec("from grange import *", given)
    assert set(NAMES) <= given.keys()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'campaign'"):
        grange.campaign  # noqa: B018


def test_importing_grange_imports_nothing_heavy() -> None:
    assert not loaded_after("import grange") & HEAVY


def test_the_version_is_told_without_importing_anything_heavy() -> None:
    loaded = loaded_after(
        "import sys; sys.argv[1:] = ['--version']; from grange.__main__ import main; main()"
    )
    assert not loaded & HEAVY


def test_opening_a_profile_imports_no_numbers_and_no_tables() -> None:
    """A first result is not kept waiting for what only results() needs."""
    loaded = loaded_after("import grange; grange.Campaign; grange.open")
    assert not loaded & {
        "numpy",
        "pandas",
        "sqlalchemy",
        "alembic",
        "ase",
        "dask",
        "rich",
        "matplotlib",
        "scipy",
    }
