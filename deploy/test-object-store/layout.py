"""What lies where in an object store's folder, and what is known of it.

object-store.json  this page's ObjectStore, for programs
client/   0700     credentials (as ~/.aws/credentials), ca.pem; of whoever started it
server/   0700     of the account: configuration, keys, data and logs of the daemons
daemons.json       the processes that were started
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStore:
    """One object store. port and the like: on host, of the gateway and of the spare one; of mon and osd.

    Units: size in bytes, of the file that holds all objects. It is sparse.
    """

    folder: str
    user: str
    fsid: str
    host: str = "127.0.0.1"
    port: int
    https_port: int
    spare_port: int
    spare_https_port: int
    mon_port: int
    osd_ports: tuple[int, int]
    size: int

    @property
    def server(self) -> Path:
        return Path(self.folder, "server")

    @property
    def client(self) -> Path:
        return Path(self.folder, "client")

    @property
    def logs(self) -> Path:
        return self.server / "log"

    @property
    def conf(self) -> Path:
        return self.server / "ceph.conf"

    @property
    def keyring(self) -> Path:
        return self.server / "keyring"

    @property
    def credentials(self) -> Path:
        return self.client / "credentials"

    @property
    def ca_file(self) -> Path:
        return self.client / "ca.pem"

    def ports_of(self, gateway: str) -> tuple[int, int]:
        """Of "gateway" or "spare": for HTTP and for HTTPS."""
        if gateway == "spare":
            return self.spare_port, self.spare_https_port
        return self.port, self.https_port

    def public(self) -> dict[str, Any]:
        """What object-store.json holds."""
        return {
            **asdict(self),
            "endpoint": f"http://{self.host}:{self.port}",
            "https_endpoint": f"https://{self.host}:{self.https_port}",
            "spare_endpoint": f"http://{self.host}:{self.spare_port}",
            "spare_https_endpoint": f"https://{self.host}:{self.spare_https_port}",
            "credentials_file": str(self.credentials),
            "ca_file": str(self.ca_file),
        }


def read(folder: Path) -> ObjectStore | None:
    """The object store whose folder this is, or None. Errors: RuntimeError."""
    file = folder / "object-store.json"
    try:
        content = json.loads(file.read_text())
        content["osd_ports"] = tuple(content["osd_ports"])
        return ObjectStore(**{name: content[name] for name in ObjectStore.__slots__})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, OSError) as problem:
        raise RuntimeError(f"{file} cannot be read as an object store's: {problem!r}") from None


def checked_folder(text: str) -> Path:
    """The folder, absolute. Errors: RuntimeError."""
    folder = Path(text).absolute()
    if not re.fullmatch(r"[A-Za-z0-9_./+-]+", str(folder)) or ".." in folder.parts:
        raise RuntimeError(
            f"The path {folder} holds characters that Ceph's configuration cannot carry; "
            "take one of letters, digits and _ . / + -"
        )
    return folder
