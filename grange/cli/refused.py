"""A command that cannot do what it was asked, and knows what can be done instead."""

from __future__ import annotations

from grange.core.errors import GrangeError


class Refused(GrangeError):
    """A command cannot do what it was asked; the advice says what can be done instead."""

    def __init__(self, message: str, advice: str) -> None:
        self.advice = advice
        super().__init__(message)
