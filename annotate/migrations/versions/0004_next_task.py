"""The task that an annotator was shown ahead; hidden checks in a lane of their own"""

import sqlalchemy as sa
from alembic import op

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CHECKS = "SELECT id FROM task WHERE kind IN ('gold', 'repeat')"

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "next_task",
        sa.Column("user_id", ROW_ID, autoincrement=False, nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("assignment_id", ROW_ID, nullable=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_next_task_user_id")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_next_task_task_id")),
        sa.ForeignKeyConstraint(
            ["assignment_id", "task_id"],
            ["assignment.id", "assignment.task_id"],
            name=op.f("fk_next_task_assignment_id_task_id"),
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_next_task")),
    )
    op.create_index(op.f("ix_next_task_assignment_id"), "next_task", ["assignment_id"])
    op.drop_index("ix_assignment_annotator_id_state", "assignment")
    op.create_index(
        "ix_assignment_annotator",
        "assignment",
        ["annotator_id", "state", "lane"],
        sqlite_where=sa.text("annotator_id IS NOT NULL"),
        postgresql_where=sa.text("annotator_id IS NOT NULL"),
    )
    op.execute(f"UPDATE assignment SET lane = 2 WHERE task_id IN ({CHECKS})")


def downgrade() -> None:
    op.execute("UPDATE assignment SET lane = 1 WHERE lane = 2")
    op.drop_index("ix_assignment_annotator", "assignment")
    op.create_index("ix_assignment_annotator_id_state", "assignment", ["annotator_id", "state"])
    op.drop_table("next_task")
