"""Run by Alembic: migrates over the connection that `annotate.migrations` hands in."""

from alembic import context

from annotate.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
