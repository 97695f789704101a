"""JSON as the database keeps it: what may go in, and how it is written so that it comes out the same.

PostgreSQL's jsonb knows no NaN, no infinity, no NUL and no lone surrogate, writes numbers without an
exponent (so 1e22 would come back as an integer), and drops the sign of zero.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from grange.core.errors import InputInvalid

Json = Any

#: Integers are read back by a parser that takes 4,300 digits, which is 14,284 bits.
MOST_BITS = 14_284
_SMALL = 2**63
#: Deeper than anybody's data, and far from where Python's own stack ends.
DEEPEST = 100
#: From here on msgspec writes a float with an exponent, and jsonb writes it without a point.
_EXPONENT_FROM = 1e16

_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder()
#: Makes every positive exponent look like 0e0: a third of what a regular expression takes.
_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"0" * 9)
_LARGEST = 1.7976931348623157e308


def checked(value: object, where: str) -> Json:
    """A copy of a value that is JSON: dicts with string keys, lists, strings, finite numbers, bool, None.

    Tuples become lists, NumPy scalars and subclasses of the plain types become plain.

    Errors: InputInvalid; its port is the path to what is no JSON, as in "parameters['k'][3]".
    """
    try:
        return _copied_if_plain(value, 0)
    except _NotPlain:
        return _checked(value, where, 0)


class _NotPlain(Exception):
    """Something is not of the commonest types: look closer, and know where it is."""


def _copied_if_plain(value: Any, depth: int) -> Json:
    """The quick way for what is nearly always there: it builds no paths and no messages."""
    kind = type(value)
    if kind is float:
        if -_LARGEST <= value <= _LARGEST:
            return value + 0.0
    elif kind is str:
        if value.isascii() and "\0" not in value:
            return value
    elif kind is int:
        if -_SMALL < value < _SMALL:
            return value
    elif kind is bool or value is None:
        return value
    elif depth < DEEPEST:
        if kind is list or kind is tuple:
            return [_copied_if_plain(item, depth + 1) for item in value]
        if kind is dict and all(type(key) is str and key.isascii() and "\0" not in key for key in value):
            return {key: _copied_if_plain(item, depth + 1) for key, item in value.items()}
    raise _NotPlain


def _checked(value: object, where: str, depth: int) -> Json:
    kind = type(value)
    if kind is str:
        return checked_text(value, where)  # type: ignore[arg-type]
    if kind is float:
        if -_LARGEST <= value <= _LARGEST:  # type: ignore[operator]
            return value + 0.0  # type: ignore[operator]
        raise InputInvalid(
            where, value, "a finite number (inside a list or dict; gr.Float takes NaN and infinity)"
        )
    if kind is int:
        return checked_integer(value, where)  # type: ignore[arg-type]
    if kind is bool or value is None:
        return value
    if depth > DEEPEST:
        raise InputInvalid(where, value, f"at most {DEEPEST} levels of nesting")
    if isinstance(value, list | tuple):
        return [_checked(item, f"{where}[{number}]", depth + 1) for number, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _checked_mapping(value, where, depth)
    return _checked_other(value, where)


def _checked_mapping(value: Mapping[Any, object], where: str, depth: int) -> dict[str, Json]:
    result: dict[str, Json] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise InputInvalid(f"{where}: key {key!r}", key, "a string as key")
        result[checked_text(key, where)] = _checked(item, f"{where}[{key!r}]", depth + 1)
    return result


def _checked_other(value: object, where: str) -> Json:
    """Subclasses of plain types, and NumPy's scalars."""
    if isinstance(value, str):
        return checked_text(str.__str__(value), where)
    if isinstance(value, float):
        return _checked(float(value), where, 0)
    if isinstance(value, int):
        return checked_integer(int(value), where)
    if is_numpy_scalar(value):
        plain = value.item()  # type: ignore[attr-defined]
        if type(plain) in (bool, int, float, str):
            return _checked(plain, where, 0)
    raise InputInvalid(where, value, "JSON (a number, text, bool, None, list or dict), or a data node")


def is_numpy_scalar(value: object) -> bool:
    """Whether a value is one of NumPy's scalars; does not import NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def checked_text(value: str, where: str) -> str:
    """A string that PostgreSQL can keep.

    Errors: InputInvalid for a NUL character or a lone surrogate.
    """
    if "\0" in value:
        raise InputInvalid(where, value, "text without NUL characters")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputInvalid(
                where, value, "text that can be written as UTF-8 (no lone surrogates)"
            ) from None
    return value


def checked_integer(value: int, where: str) -> int:
    """An integer that can be read back.

    Errors: InputInvalid for one of more than 14,284 bits.
    """
    if value.bit_length() > MOST_BITS:
        raise InputInvalid(where, _Huge(value), f"an integer of at most {MOST_BITS} bits")
    return value


class _Huge:
    """Stands in a message for an integer that Python refuses to write out."""

    def __init__(self, value: int) -> None:
        self.bits = value.bit_length()

    def __repr__(self) -> str:
        return f"an integer of {self.bits} bits"


def copied(value: Json) -> Json:
    """A copy whose lists and dicts are its own."""
    if isinstance(value, dict):
        return {key: copied(item) if isinstance(item, dict | list) else item for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) if isinstance(item, dict | list) else item for item in value]
    return value


def encoded(value: Json) -> bytes:
    """The canonical text: keys sorted, no blanks; the same before and after the database."""
    return _encoder.encode(value)


def for_database(text: bytes) -> bytes:
    """A canonical text as jsonb has to be given it: large floats keep their point."""
    if b"0e0" in text.translate(_DIGITS_ALIKE):
        return _without_exponents(_decoder.decode(text))
    return text


def _without_exponents(value: Json) -> bytes:
    if isinstance(value, dict):
        items = (_encoder.encode(key) + b":" + _without_exponents(item) for key, item in value.items())
        return b"{" + b",".join(items) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(_without_exponents(item) for item in value) + b"]"
    if isinstance(value, float) and abs(value) >= _EXPONENT_FROM:
        from decimal import Decimal

        return f"{Decimal(repr(value)):f}.0".encode()
    return _encoder.encode(value)


def decoded(text: str | bytes) -> Json:
    """The value of a JSON text."""
    return _decoder.decode(text)
