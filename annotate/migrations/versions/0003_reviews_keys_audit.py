"""Closed tasks, keys of gold tasks, repeats, extra slots, reviews, the audit trail"""

import sqlalchemy as sa
from alembic import op

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
IN_QUEUE = sa.text("state IN ('open', 'leased')")
OUTCOMES = "outcome IN ('picked', 'all_bad', 'all_equal', 'skip', 'flag', 'cannot_judge')"

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("task") as task:
        task.add_column(sa.Column("repeats_id", sa.String(), nullable=True))
        task.add_column(sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True))
        task.create_foreign_key(op.f("fk_task_repeats_id"), "task", ["repeats_id"], ["id"])
        task.create_index(op.f("ix_task_repeats_id"), ["repeats_id"])
    _rebuild_queue(["lane", "rank", "id"], columns=True)
    op.create_table(
        "task_key",
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.CheckConstraint("role IN ('win', 'lose')", name=op.f("ck_task_key_role")),
        _shown("ordinal", "fk_task_key_task_id_ordinal"),
        sa.PrimaryKeyConstraint("task_id", "ordinal", "role", name=op.f("pk_task_key")),
    )
    _create_review()
    _create_audit()


def _rebuild_queue(index: list[str], columns: bool) -> None:
    op.drop_index(op.f("ix_assignment_queue"), "assignment")
    with op.batch_alter_table("assignment") as assignment:
        if columns:
            assignment.add_column(
                sa.Column("lane", sa.Integer(), server_default="1", nullable=False)
            )
            assignment.add_column(
                sa.Column("is_extra", sa.Boolean(), server_default=sa.false(), nullable=False)
            )
        else:
            assignment.drop_column("is_extra")
            assignment.drop_column("lane")
    op.create_index(
        op.f("ix_assignment_queue"),
        "assignment",
        index,
        sqlite_where=IN_QUEUE,
        postgresql_where=IN_QUEUE,
    )


def _shown(ordinal: str, name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["task_id", ordinal],
        ["task_candidate.task_id", "task_candidate.ordinal"],
        name=op.f(name),
    )


def _create_review() -> None:
    op.create_table(
        "review",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("reviewer_id", ROW_ID, nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("win", sa.Integer(), nullable=True),
        sa.Column("lose", sa.Integer(), nullable=True),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "decision IN ('confirm', 'override', 'discard', 'return')",
            name=op.f("ck_review_decision"),
        ),
        sa.CheckConstraint(
            "cause IN ('hard', 'unclear_prompt', 'guideline_gap', 'careless', 'broken_image', "
            "'other')",
            name=op.f("ck_review_cause"),
        ),
        sa.CheckConstraint(OUTCOMES, name=op.f("ck_review_outcome")),
        sa.CheckConstraint(
            "(decision = 'override') = (outcome IS NOT NULL)", name=op.f("ck_review_override")
        ),
        sa.CheckConstraint(
            "(outcome = 'picked' AND win IS NOT NULL AND lose IS NOT NULL AND win <> lose) OR "
            "((outcome IS NULL OR outcome <> 'picked') AND win IS NULL AND lose IS NULL)",
            name=op.f("ck_review_win_lose"),
        ),
        _shown("win", "fk_review_task_id_win"),
        _shown("lose", "fk_review_task_id_lose"),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_review_task_id")),
        sa.ForeignKeyConstraint(
            ["reviewer_id"], ["user_account.id"], name=op.f("fk_review_reviewer_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review")),
    )
    op.create_index(op.f("ix_review_task_id"), "review", ["task_id"])


def _create_audit() -> None:
    op.create_table(
        "audit_event",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("previous_sha256", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_event")),
        sa.UniqueConstraint("actor", "number", name=op.f("uq_audit_event_actor_number")),
    )
    op.create_index(op.f("ix_audit_event_subject"), "audit_event", ["subject"])
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_event_no_{verb.lower()} BEFORE {verb} ON audit_event "
                "BEGIN SELECT RAISE(ABORT, 'the audit trail is only ever added to'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_event_is_final() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'the audit trail is only ever added to'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_event_no_change BEFORE UPDATE OR DELETE ON audit_event "
        "FOR EACH ROW EXECUTE FUNCTION audit_event_is_final()"
    )


def downgrade() -> None:
    op.drop_table("audit_event")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION audit_event_is_final()")
    op.drop_table("review")
    op.drop_table("task_key")
    _rebuild_queue(["rank", "id"], columns=False)
    with op.batch_alter_table("task") as task:
        task.drop_index(op.f("ix_task_repeats_id"))
        task.drop_constraint(op.f("fk_task_repeats_id"), type_="foreignkey")
        task.drop_column("closed_at")
        task.drop_column("repeats_id")
