"""Signed URLs: one request, for a while, for somebody who has no credentials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Signer(Protocol):
    """What a store can do whose server understands signed URLs. A folder cannot.

    A URL is a secret: who has it may do what it says until it expires.
    """

    def sign_get(self, names: Sequence[str], expires_s: float) -> list[str]:
        """URLs to GET objects, or ranges of them, from. Nothing is asked of the server.

        Shapes: n names in, n URLs out, in the same order.
        Errors: ObjectNameInvalid; StoreError where there are no credentials, or for more than a week.
        """
        ...

    def sign_put(self, names: Sequence[str], expires_s: float) -> list[str]:
        """URLs to PUT objects to, whole, each by one request. As sign_get().

        Whoever puts has to send the header `If-None-Match: *`, which is signed with the rest: a second
        delivery is answered by 412, and where the server knows that header nothing can be replaced.
        """
        ...
