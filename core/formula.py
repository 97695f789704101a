"""The chemical formula of a structure's attributes: for cells, short values and nodes alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


def formula(attributes: Mapping[str, Any]) -> str:
    """The formula of a structure in Hill's order: carbon, hydrogen, then the alphabet.

    A site that several elements share, or that is partly empty, is written in braces: {Al0.5Ni0.5}.
    """
    names = {kind["name"]: _symbol(kind) for kind in attributes.get("kinds", ())}
    counts = Counter(names.get(site["kind_name"], "?") for site in attributes.get("sites", ()))
    has_carbon = "C" in counts

    def place(symbol: str) -> tuple[int, str]:
        return (("C", "H").index(symbol) if has_carbon and symbol in ("C", "H") else 2, symbol)

    return "".join(
        f"{symbol}{counts[symbol] if counts[symbol] > 1 else ''}" for symbol in sorted(counts, key=place)
    )


def _symbol(kind: Mapping[str, Any]) -> str:
    symbols, weights = kind.get("symbols", ["?"]), kind.get("weights", [1])
    if len(symbols) == 1 and weights == [1]:
        return str(symbols[0])
    return "{" + "".join(f"{s}{w:g}" for s, w in zip(symbols, weights, strict=False)) + "}"
