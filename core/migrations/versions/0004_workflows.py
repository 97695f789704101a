"""Workflows, queues, workers and daemons, events."""

from __future__ import annotations

from alembic import op

from grange.core.migrate import revision_sql

revision = "0004_workflows"
down_revision = "0003_pruning"


def upgrade() -> None:
    # Not by SQLAlchemy, which would take % and : for parameters.
    op.get_bind().connection.cursor().execute(revision_sql(revision))
