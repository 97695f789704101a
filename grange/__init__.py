"""grange: farm thousands to millions of small calculations, and keep the origin of every result.

The names that people use are listed here; each is loaded when it is first asked for, so that
`import grange` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grange.core.attribute_dict import AttributeDict
    from grange.core.caching import disable_caching, enable_caching
    from grange.core.calcfunction import CalcFunction, CalculationFailed, calcfunction
    from grange.core.calcjob import CalcJob
    from grange.core.calculation_import import import_calculation, import_calculations
    from grange.core.call_binding import recording
    from grange.core.calls import Fixed as fixed  # noqa: N813
    from grange.core.campaign import Campaign, CampaignInterrupted
    from grange.core.command import Command
    from grange.core.daemon_client import DaemonClient
    from grange.core.data import (
        Array,
        Bool,
        Code,
        ContainerizedCode,
        Dict,
        Enum,
        Float,
        Folder,
        InstalledCode,
        Int,
        List,
        PortableCode,
        RemoteFolder,
        RemoteStash,
        RemoteStashArchive,
        RemoteStashFolder,
        SingleFile,
        Str,
        Structure,
    )
    from grange.core.dry_run import DryRun, dry_run
    from grange.core.errors import (
        DaemonException,
        DaemonNotRunningException,
        DaemonTimeoutException,
        GrangeError,
        ProfileLocked,
    )
    from grange.core.exit_code import ExitCode
    from grange.core.future import Future, ProcessFailed
    from grange.core.group import Group
    from grange.core.link import Link, LinkType
    from grange.core.local_run import RunInterrupted
    from grange.core.node import Data
    from grange.core.outline import if_, return_, while_
    from grange.core.process_handler import ProcessHandlerReport, process_handler
    from grange.core.profile import Profile
    from grange.core.profile import open_profile as open  # noqa: A004
    from grange.core.restart_workchain import BaseRestartWorkChain
    from grange.core.shell_job import ShellJob
    from grange.core.steering import kill_processes, pause_processes, play_processes
    from grange.core.submit import run, run_get_node, submit, submit_many, wait
    from grange.core.workchain import WorkChain
    from grange.core.workchain_context import ToContext, append_
    from grange.core.workflow import Workflow, workflow
    from grange.core.workflow import workflow as workfunction
    from grange.farm.monitor import Monitor
    from grange.farm.stash import Stash
    from grange.farm.task import Resources

_HOME = {
    "Array": "grange.core.data",
    "AttributeDict": "grange.core.attribute_dict",
    "BaseRestartWorkChain": "grange.core.restart_workchain",
    "Bool": "grange.core.data",
    "CalcFunction": "grange.core.calcfunction",
    "CalcJob": "grange.core.calcjob",
    "CalculationFailed": "grange.core.calcfunction",
    "Campaign": "grange.core.campaign",
    "CampaignInterrupted": "grange.core.campaign",
    "Code": "grange.core.data",
    "Command": "grange.core.command",
    "ContainerizedCode": "grange.core.data",
    "DaemonClient": "grange.core.daemon_client",
    "DaemonException": "grange.core.errors",
    "DaemonNotRunningException": "grange.core.errors",
    "DaemonTimeoutException": "grange.core.errors",
    "Data": "grange.core.node",
    "Dict": "grange.core.data",
    "DryRun": "grange.core.dry_run",
    "Enum": "grange.core.data",
    "ExitCode": "grange.core.exit_code",
    "Float": "grange.core.data",
    "Folder": "grange.core.data",
    "Future": "grange.core.future",
    "GrangeError": "grange.core.errors",
    "Group": "grange.core.group",
    "InstalledCode": "grange.core.data",
    "Int": "grange.core.data",
    "Link": "grange.core.link",
    "LinkType": "grange.core.link",
    "List": "grange.core.data",
    "Monitor": "grange.farm.monitor",
    "PortableCode": "grange.core.data",
    "ProcessFailed": "grange.core.future",
    "ProcessHandlerReport": "grange.core.process_handler",
    "Profile": "grange.core.profile",
    "ProfileLocked": "grange.core.errors",
    "RemoteFolder": "grange.core.data",
    "RemoteStash": "grange.core.data",
    "RemoteStashArchive": "grange.core.data",
    "RemoteStashFolder": "grange.core.data",
    "Resources": "grange.farm.task",
    "RunInterrupted": "grange.core.local_run",
    "ShellJob": "grange.core.shell_job",
    "SingleFile": "grange.core.data",
    "Stash": "grange.farm.stash",
    "Str": "grange.core.data",
    "Structure": "grange.core.data",
    "ToContext": "grange.core.workchain_context",
    "WorkChain": "grange.core.workchain",
    "Workflow": "grange.core.workflow",
    "append_": "grange.core.workchain_context",
    "calcfunction": "grange.core.calcfunction",
    "disable_caching": "grange.core.caching",
    "dry_run": "grange.core.dry_run",
    "enable_caching": "grange.core.caching",
    "fixed": "grange.core.calls",
    "if_": "grange.core.outline",
    "import_calculation": "grange.core.calculation_import",
    "import_calculations": "grange.core.calculation_import",
    "kill_processes": "grange.core.steering",
    "open": "grange.core.profile",
    "pause_processes": "grange.core.steering",
    "play_processes": "grange.core.steering",
    "process_handler": "grange.core.process_handler",
    "recording": "grange.core.call_binding",
    "return_": "grange.core.outline",
    "run": "grange.core.submit",
    "run_get_node": "grange.core.submit",
    "submit": "grange.core.submit",
    "submit_many": "grange.core.submit",
    "wait": "grange.core.submit",
    "while_": "grange.core.outline",
    "workflow": "grange.core.workflow",
    "workfunction": "grange.core.workflow",
}
_RENAMED = {"fixed": "Fixed", "open": "open_profile", "workfunction": "workflow"}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'grange' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
