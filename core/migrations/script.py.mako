"""${message}"""

from __future__ import annotations

from alembic import op

from grange.core.migrate import revision_sql

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    # Not by SQLAlchemy, which would take % and : for parameters.
    op.get_bind().connection.cursor().execute(revision_sql(revision))
