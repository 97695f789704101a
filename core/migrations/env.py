"""What Alembic runs: one transaction for all revisions, under the lock that keeps other openers out."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from grange.core.migrate import MIGRATION_LOCK


def run() -> None:
    """Run the migrations on the connection that grange.core.migrate.migrate hands in."""
    engine = create_engine(
        "postgresql+psycopg2://", creator=context.config.attributes["connect"], poolclass=NullPool
    )
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()


run()
