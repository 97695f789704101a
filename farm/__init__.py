"""Commands and machines: what runs tasks, and how their results come back.

Nothing here knows a database. farm.runner is what travels to a compute node.
"""

from grange.farm.chunk import Sizing
from grange.farm.errors import (
    ExecutorUnavailable,
    FarmError,
    FunctionNotShippable,
    ResultMalformed,
    SpoolUnwritable,
    TaskRefused,
)
from grange.farm.executor import Executor
from grange.farm.function import ship
from grange.farm.local_pool import LocalPool
from grange.farm.result import Outcome, ResultPack, TaskResult
from grange.farm.result_pack import read_result_pack
from grange.farm.task import Batch, CommandTask, FunctionTask, Resources, ShippedFunction, Task

__all__ = [
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
