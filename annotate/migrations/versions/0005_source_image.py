"""The picture that a prompt asks to edit"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("prompt", sa.Column("source_image", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("prompt", "source_image")
