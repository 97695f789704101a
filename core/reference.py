"""What a person calls a node: its id, its uuid or how that begins, or its place in a campaign."""

from __future__ import annotations

import re

from grange.core.database import Cursor
from grange.core.errors import InputInvalid, NotFound

#: Fewer digits would name some node by accident.
SHORTEST_PREFIX = 4

_UUID_BEGIN = re.compile(
    r"[0-9a-f]{1,8}(-[0-9a-f]{0,4}){0,3}(-[0-9a-f]{0,12})?|[0-9a-f]{1,32}", re.IGNORECASE
)
_IN_CAMPAIGN = re.compile(r"(?P<campaign>.+)/(?P<ordinal>\d+)")

# Which of some ids are nodes.
_BY_ID = "SELECT id FROM node WHERE id = ANY (%s::bigint[])"

# The nodes whose uuid lies between two: those that begin alike. Three are enough to say "ambiguous".
_BY_UUID = "SELECT id, uuid::text FROM node WHERE uuid BETWEEN %s::uuid AND %s::uuid ORDER BY uuid LIMIT 3"

# The process of one call of a campaign: the last that it was tried as.
_IN_CAMPAIGN_AT = """
SELECT p.node_id FROM "group" g JOIN process p ON p.campaign_id = g.id
WHERE g.type_string = 'campaign' AND g.label = %(label)s AND p.ordinal = %(ordinal)s
  AND p.superseded_by IS NULL
ORDER BY p.node_id DESC LIMIT 1
"""


def node_ids(cursor: Cursor, references: list[str]) -> list[int]:
    """The ids of the nodes that are meant, in the same order.

    Digits alone are an id; four or more hexadecimal digits are how a uuid begins; "name/3" is the call
    number 3 of the campaign "name".

    Errors: NotFound; InputInvalid for what can be no name of a node, or names several.
    """
    # 18 digits are below 2⁶³; nothing longer is an id
    plain = {reference: int(reference) for reference in references if re.fullmatch(r"\d{1,18}", reference)}
    found: set[int] = set()
    if plain:
        cursor.execute(_BY_ID, (list(plain.values()),))
        found = {row[0] for row in cursor.fetchall()}
    answer = []
    for reference in references:
        if reference in plain and plain[reference] in found:
            answer.append(plain[reference])
        elif reference in plain:
            raise NotFound(f"no node has the id {reference}")
        else:
            answer.append(_one(cursor, reference))
    return answer


def _one(cursor: Cursor, reference: str) -> int:
    place = _IN_CAMPAIGN.fullmatch(reference)
    if place:
        return _in_campaign(cursor, place["campaign"], int(place["ordinal"]))
    digits = reference.replace("-", "").lower()
    if not _UUID_BEGIN.fullmatch(reference) or len(digits) < SHORTEST_PREFIX:
        raise InputInvalid(
            "node",
            reference,
            "an id, a uuid or at least its first 4 digits, or campaign/number (as in fcc-eos/3)",
        )
    cursor.execute(_BY_UUID, (digits.ljust(32, "0"), digits.ljust(32, "f")))
    rows = cursor.fetchall()
    if not rows:
        raise NotFound(f"no node has a uuid that begins with {reference}")
    if len(rows) > 1:
        shown = ", ".join(f"{uuid} (id {node_id})" for node_id, uuid in rows)
        raise InputInvalid("node", reference, f"more digits: several uuids begin so, as {shown}")
    return int(rows[0][0])


def _in_campaign(cursor: Cursor, label: str, ordinal: int) -> int:
    cursor.execute(_IN_CAMPAIGN_AT, {"label": label, "ordinal": ordinal})
    row = cursor.fetchone()
    if row is None:
        raise NotFound(f"the campaign {label!r} is not there, or has no call number {ordinal}")
    return int(row[0])
