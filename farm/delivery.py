"""Delivery: how nodes that have no credentials put packs into the store, and fetch input files from there.

By signed URLs, which are made when chunks are sent and travel beside them (courier.py says in which form). A
URL lets its bearer put one object of one name, once, or read one object, for a while. Here they are never on
a disk but in the file that is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from grange.repository.delivered import DeliveredPack
from grange.repository.index import BlobLocation
from grange.repository.key import Key
from grange.repository.object_name import pack_name
from grange.repository.signer import Signer
from grange.repository.store import Store

#: As long as S3 allows. A chunk that waits longer in a queue delivers as if there were no URLs.
EXPIRES_S = 7 * 86400.0
#: A chunk gets URLs for so many packs at most; what comes after them is fetched from its folder.
PACKS = 64
#: Smaller packs and input files travel with the rest: a request to the store is worth more. Bytes.
LEAST_BYTES = 256 << 10

Locate = Callable[[Collection[Key]], dict[Key, BlobLocation]]
Promise = Callable[[Collection[str]], None]


@dataclass(frozen=True, slots=True)
class Delivery:
    """The store, as far as the chunks of a campaign have to do with it.

    locate: where contents lie. promise: is told which packs will come, before anybody can put them: what was
    not told of would be pruned. ca: certificates that are trusted beside the system's (PEM).
    Units: expires_s in seconds; least_bytes in bytes.
    """

    store: Store
    signer: Signer
    locate: Locate
    promise: Promise
    ca: str = ""
    expires_s: float = EXPIRES_S
    least_bytes: int = LEAST_BYTES

    def left_away(self, keys: Collection[Key]) -> set[Key]:
        """Those of the contents that nodes fetch by themselves."""
        return {key for key, place in self.locate(keys).items() if place.size >= self.least_bytes}

    def urls(self, run: str, chunk: str, count: int, keys: Collection[Key]) -> dict[str, Any]:
        """What a chunk's runner is told (courier.py): a secret.

        count: for how many packs; keys: of contents that were left out of the chunk.
        Errors: those of the store, where nobody can sign.
        """
        names = pack_names(run, chunk, count)
        self.promise(names)
        places = self.locate(keys) if keys else {}
        objects = sorted({place.object_name for place in places.values()})
        signed = dict(zip(objects, self.signer.sign_get(objects, self.expires_s), strict=True))
        return {
            "put": list(zip(names, self.signer.sign_put(names, self.expires_s), strict=True)),
            "get": {
                key: {
                    "url": signed[place.object_name],
                    "offset": place.offset,
                    "stored_size": place.stored_size,
                    "codec": place.codec,
                    "size": place.size,
                }
                for key, place in places.items()
            },
            "ca": self.ca,
            "least": self.least_bytes,
        }

    def has(self, pack: DeliveredPack, run: str, chunk: str, number: int) -> bool:
        """Whether a pack that a receipt tells of is the one that its chunk had a URL for, and is there.

        Errors: StoreUnavailable (retry).
        """
        [*_, name] = pack_names(run, chunk, number)
        return pack.object_name == name and pack.is_in(self.store)


def pack_names(run: str, chunk: str, count: int) -> Sequence[str]:
    """The names in the store of the first result packs of a chunk.

    Each stands for one file: that number of that chunk, whose run has a name of its own by chance.
    """
    stem = hashlib.sha256(f"{run}/{chunk}".encode()).hexdigest()[:26]
    return [pack_name(f"{stem}{number:06x}") for number in range(1, count + 1)]
