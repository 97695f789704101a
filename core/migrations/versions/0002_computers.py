"""Computers: connections, allocations and their policies."""

from __future__ import annotations

from alembic import op

from grange.core.migrate import revision_sql

revision = "0002_computers"
down_revision = "0001_first_light"


def upgrade() -> None:
    # Not by SQLAlchemy, which would take % and : for parameters.
    op.get_bind().connection.cursor().execute(revision_sql(revision))
