"""Reasons, regions, ratings and thumbs of a pick; reference mode; guidelines; "cannot judge" """

import sqlalchemy as sa
from alembic import op

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OUTCOMES = "outcome IN ('picked', 'all_bad', 'all_equal', 'skip', 'flag'{more})"

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "guideline",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("author_id", ROW_ID, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["author_id"], ["user_account.id"], name=op.f("fk_guideline_author_id")
        ),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_guideline")),
    )
    with op.batch_alter_table("task") as task:
        task.add_column(sa.Column("reference", sa.Integer(), nullable=True))
        task.create_check_constraint(
            op.f("ck_task_reference"), "reference BETWEEN 0 AND n_candidates - 1"
        )
    with op.batch_alter_table("pick") as pick:
        pick.add_column(sa.Column("guideline_version", sa.Integer(), nullable=True))
        pick.create_foreign_key(
            op.f("fk_pick_guideline_version"), "guideline", ["guideline_version"], ["version"]
        )
        pick.create_unique_constraint(op.f("uq_pick_id_task_id"), ["id", "task_id"])
        pick.drop_constraint(op.f("ck_pick_outcome"), type_="check")
        pick.create_check_constraint(
            op.f("ck_pick_outcome"), OUTCOMES.format(more=", 'cannot_judge'")
        )
    _create_pick_reason()
    _create_pick_region()
    _create_pick_mark()


def _create_pick_reason() -> None:
    op.create_table(
        "pick_reason",
        sa.Column("pick_id", ROW_ID, nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("criterion", sa.String(), nullable=False),
        sa.CheckConstraint("target IN ('win', 'lose')", name=op.f("ck_pick_reason_target")),
        sa.CheckConstraint(
            "criterion IN ('aesthetics', 'instruction', 'detail')",
            name=op.f("ck_pick_reason_criterion"),
        ),
        sa.ForeignKeyConstraint(["pick_id"], ["pick.id"], name=op.f("fk_pick_reason_pick_id")),
        sa.PrimaryKeyConstraint("pick_id", "target", "criterion", name=op.f("pk_pick_reason")),
    )


def _create_pick_region() -> None:
    op.create_table(
        "pick_region",
        sa.Column("pick_id", ROW_ID, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("x", sa.Integer(), nullable=False),
        sa.Column("y", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("criterion", sa.String(), nullable=True),
        sa.CheckConstraint(
            "x >= 0 AND y >= 0 AND width > 0 AND height > 0", name=op.f("ck_pick_region_box")
        ),
        sa.CheckConstraint(
            "criterion IN ('aesthetics', 'instruction', 'detail')",
            name=op.f("ck_pick_region_criterion"),
        ),
        sa.ForeignKeyConstraint(
            ["pick_id", "task_id"],
            ["pick.id", "pick.task_id"],
            name=op.f("fk_pick_region_pick_id_task_id"),
        ),
        sa.ForeignKeyConstraint(
            ["task_id", "ordinal"],
            ["task_candidate.task_id", "task_candidate.ordinal"],
            name=op.f("fk_pick_region_task_id_ordinal"),
        ),
        sa.PrimaryKeyConstraint("pick_id", "number", name=op.f("pk_pick_region")),
    )


def _create_pick_mark() -> None:
    op.create_table(
        "pick_mark",
        sa.Column("pick_id", ROW_ID, nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("rating", sa.Integer(), nullable=True),
        sa.Column("thumb", sa.String(), nullable=True),
        sa.CheckConstraint("rating BETWEEN 1 AND 5", name=op.f("ck_pick_mark_rating")),
        sa.CheckConstraint("thumb IN ('up', 'down')", name=op.f("ck_pick_mark_thumb")),
        sa.CheckConstraint(
            "rating IS NOT NULL OR thumb IS NOT NULL", name=op.f("ck_pick_mark_says_something")
        ),
        sa.ForeignKeyConstraint(
            ["pick_id", "task_id"],
            ["pick.id", "pick.task_id"],
            name=op.f("fk_pick_mark_pick_id_task_id"),
        ),
        sa.ForeignKeyConstraint(
            ["task_id", "ordinal"],
            ["task_candidate.task_id", "task_candidate.ordinal"],
            name=op.f("fk_pick_mark_task_id_ordinal"),
        ),
        sa.PrimaryKeyConstraint("pick_id", "ordinal", name=op.f("pk_pick_mark")),
    )


def downgrade() -> None:
    for table in ("pick_mark", "pick_region", "pick_reason"):
        op.drop_table(table)
    # The older schema has no word for it; a flag also says that the task was not judged.
    op.execute("UPDATE pick SET outcome = 'flag' WHERE outcome = 'cannot_judge'")
    with op.batch_alter_table("pick") as pick:
        pick.drop_constraint(op.f("ck_pick_outcome"), type_="check")
        pick.create_check_constraint(op.f("ck_pick_outcome"), OUTCOMES.format(more=""))
        pick.drop_constraint(op.f("uq_pick_id_task_id"), type_="unique")
        pick.drop_constraint(op.f("fk_pick_guideline_version"), type_="foreignkey")
        pick.drop_column("guideline_version")
    with op.batch_alter_table("task") as task:
        task.drop_constraint(op.f("ck_task_reference"), type_="check")
        task.drop_column("reference")
    op.drop_table("guideline")
