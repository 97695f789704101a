"""Pruning: which packs runners have delivered for a campaign, and which are dead."""

from __future__ import annotations

from alembic import op

from grange.core.migrate import revision_sql

revision = "0003_pruning"
down_revision = "0002_computers"


def upgrade() -> None:
    # Not by SQLAlchemy, which would take % and : for parameters.
    op.get_bind().connection.cursor().execute(revision_sql(revision))
