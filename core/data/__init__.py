"""Data: the nodes that hold values. Importing this makes every class known to graph.load."""

from grange.core.data.array import Array
from grange.core.data.bool import Bool
from grange.core.data.code import Code, ContainerizedCode, InstalledCode, PortableCode
from grange.core.data.dict import Dict
from grange.core.data.enum import Enum
from grange.core.data.float import Float
from grange.core.data.folder import Folder
from grange.core.data.int import Int
from grange.core.data.list import List
from grange.core.data.null import Null
from grange.core.data.remote_folder import RemoteFolder
from grange.core.data.remote_stash import RemoteStash, RemoteStashArchive, RemoteStashFolder
from grange.core.data.singlefile import SingleFile
from grange.core.data.str import Str
from grange.core.data.structure import Structure

__all__ = [
    "Array",
    "Bool",
    "Code",
    "ContainerizedCode",
    "Dict",
    "Enum",
    "Float",
    "Folder",
    "InstalledCode",
    "Int",
    "List",
    "Null",
    "PortableCode",
    "RemoteFolder",
    "RemoteStash",
    "RemoteStashArchive",
    "RemoteStashFolder",
    "SingleFile",
    "Str",
    "Structure",
]
