"""First light: the tables of the design."""

from __future__ import annotations

from alembic import op

from grange.core.migrate import revision_sql

revision = "0001_first_light"
down_revision = None


def upgrade() -> None:
    # Not by SQLAlchemy, which would take % and : for parameters.
    op.get_bind().connection.cursor().execute(revision_sql(revision))
