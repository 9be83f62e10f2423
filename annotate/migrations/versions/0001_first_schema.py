"""The first schema"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
QUERY_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prompt",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("lang", sa.String(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "split IN ('train', 'validation', 'test')", name=op.f("ck_prompt_split")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt")),
    )
    op.create_index(op.f("ix_prompt_category"), "prompt", ["category"], unique=False)

    op.create_table(
        "run",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("snapshot_digest", sa.String(), nullable=True),
        sa.Column("config", QUERY_JSON, nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("metrics", QUERY_JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "status IN ('running', 'finished', 'failed', 'stopped')", name=op.f("ck_run_status")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
    )
    op.create_index(op.f("ix_run_created_at"), "run", ["created_at"], unique=False)
    op.create_index(op.f("ix_run_snapshot_digest"), "run", ["snapshot_digest"], unique=False)

    op.create_table(
        "setting",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_setting")),
    )
    op.create_table(
        "snapshot",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("counts", QUERY_JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_snapshot")),
    )
    op.create_table(
        "user_account",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("name_norm", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "role IN ('annotator', 'reviewer', 'lead', 'engineer', 'admin')",
            name=op.f("ck_user_account_role"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_account")),
        sa.UniqueConstraint("name_norm", name=op.f("uq_user_account_name_norm")),
    )
    op.create_table(
        "auth_session",
        sa.Column("token_sha256", sa.String(), nullable=False),
        sa.Column("user_id", ROW_ID, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_auth_session_user_id")
        ),
        sa.PrimaryKeyConstraint("token_sha256", name=op.f("pk_auth_session")),
    )
    op.create_index(op.f("ix_auth_session_user_id"), "auth_session", ["user_id"], unique=False)

    op.create_table(
        "candidate",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("prompt_id", sa.String(), nullable=False),
        sa.Column("image_sha256", sa.String(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("generation", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(image_sha256) = 64", name=op.f("ck_candidate_image_sha256")),
        sa.CheckConstraint("width > 0 AND height > 0", name=op.f("ck_candidate_size")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_candidate_prompt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_candidate")),
        sa.UniqueConstraint("id", "prompt_id", name=op.f("uq_candidate_id_prompt_id")),
    )
    op.create_index(op.f("ix_candidate_image_sha256"), "candidate", ["image_sha256"], unique=False)
    op.create_index(op.f("ix_candidate_prompt_id"), "candidate", ["prompt_id"], unique=False)

    op.create_table(
        "task",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("prompt_id", sa.String(), nullable=False),
        sa.Column("question", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("n_candidates", sa.Integer(), nullable=False),
        sa.Column("k_required", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "question IN ('overall', 'aesthetics', 'instruction', 'detail')",
            name=op.f("ck_task_question"),
        ),
        sa.CheckConstraint("k_required >= 0", name=op.f("ck_task_k_required")),
        sa.CheckConstraint("n_candidates BETWEEN 2 AND 9", name=op.f("ck_task_n_candidates")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_task_prompt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task")),
        sa.UniqueConstraint("id", "prompt_id", name=op.f("uq_task_id_prompt_id")),
    )
    op.create_index(op.f("ix_task_prompt_id"), "task", ["prompt_id"], unique=False)

    op.create_table(
        "assignment",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("annotator_id", ROW_ID, nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("display_order", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("replaces_id", ROW_ID, nullable=True),
        sa.CheckConstraint(
            "(state IN ('open', 'void') AND annotator_id IS NULL AND lease_until IS NULL) OR "
            "(state = 'leased' AND annotator_id IS NOT NULL AND lease_until IS NOT NULL) OR "
            "(state IN ('done', 'skipped') AND annotator_id IS NOT NULL)",
            name=op.f("ck_assignment_holder"),
        ),
        sa.CheckConstraint(
            "state IN ('open', 'leased', 'done', 'skipped', 'void')",
            name=op.f("ck_assignment_state"),
        ),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["user_account.id"], name=op.f("fk_assignment_annotator_id")
        ),
        sa.ForeignKeyConstraint(
            ["replaces_id"], ["assignment.id"], name=op.f("fk_assignment_replaces_id")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_assignment_task_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignment")),
        sa.UniqueConstraint("id", "task_id", name=op.f("uq_assignment_id_task_id")),
        sa.UniqueConstraint("replaces_id", name=op.f("uq_assignment_replaces_id")),
        sa.UniqueConstraint(
            "task_id", "annotator_id", name=op.f("uq_assignment_task_id_annotator_id")
        ),
        sa.UniqueConstraint("task_id", "slot", name=op.f("uq_assignment_task_id_slot")),
    )
    op.create_index(
        "ix_assignment_annotator_id_state", "assignment", ["annotator_id", "state"], unique=False
    )
    op.create_index(
        "ix_assignment_queue",
        "assignment",
        ["rank", "id"],
        unique=False,
        sqlite_where=sa.text("state IN ('open', 'leased')"),
        postgresql_where=sa.text("state IN ('open', 'leased')"),
    )
    op.create_index(
        "ix_assignment_open",
        "assignment",
        ["task_id"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "uq_assignment_one_lease",
        "assignment",
        ["annotator_id"],
        unique=True,
        sqlite_where=sa.text("state = 'leased'"),
        postgresql_where=sa.text("state = 'leased'"),
    )

    op.create_table(
        "task_candidate",
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("candidate_id", sa.String(), nullable=False),
        sa.Column("prompt_id", sa.String(), nullable=False),
        sa.CheckConstraint("ordinal BETWEEN 0 AND 8", name=op.f("ck_task_candidate_ordinal")),
        sa.ForeignKeyConstraint(
            ["candidate_id", "prompt_id"],
            ["candidate.id", "candidate.prompt_id"],
            name=op.f("fk_task_candidate_candidate_id_prompt_id"),
        ),
        sa.ForeignKeyConstraint(
            ["task_id", "prompt_id"],
            ["task.id", "task.prompt_id"],
            name=op.f("fk_task_candidate_task_id_prompt_id"),
        ),
        sa.PrimaryKeyConstraint("task_id", "ordinal", name=op.f("pk_task_candidate")),
        sa.UniqueConstraint(
            "task_id", "candidate_id", name=op.f("uq_task_candidate_task_id_candidate_id")
        ),
    )
    op.create_index(
        op.f("ix_task_candidate_candidate_id"), "task_candidate", ["candidate_id"], unique=False
    )

    op.create_table(
        "pick",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=False),
        sa.Column("body_sha256", sa.String(), nullable=False),
        sa.Column("assignment_id", ROW_ID, nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("annotator_id", ROW_ID, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("win", sa.Integer(), nullable=True),
        sa.Column("lose", sa.Integer(), nullable=True),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("active_ms", sa.Integer(), nullable=True),
        sa.Column("wall_ms", sa.Integer(), nullable=True),
        sa.Column("first_action_ms", sa.Integer(), nullable=True),
        sa.Column("telemetry", QUERY_JSON, nullable=False),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(outcome = 'picked' AND win IS NOT NULL AND lose IS NOT NULL AND win <> lose) OR "
            "(outcome <> 'picked' AND win IS NULL AND lose IS NULL)",
            name=op.f("ck_pick_win_lose"),
        ),
        sa.CheckConstraint(
            "outcome IN ('picked', 'all_bad', 'all_equal', 'skip', 'flag')",
            name=op.f("ck_pick_outcome"),
        ),
        sa.CheckConstraint(
            "status IN ('current', 'withdrawn', 'void')", name=op.f("ck_pick_status")
        ),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["user_account.id"], name=op.f("fk_pick_annotator_id")
        ),
        sa.ForeignKeyConstraint(
            ["assignment_id", "task_id"],
            ["assignment.id", "assignment.task_id"],
            name=op.f("fk_pick_assignment_id_task_id"),
        ),
        sa.ForeignKeyConstraint(
            ["task_id", "lose"],
            ["task_candidate.task_id", "task_candidate.ordinal"],
            name=op.f("fk_pick_task_id_lose"),
        ),
        sa.ForeignKeyConstraint(
            ["task_id", "win"],
            ["task_candidate.task_id", "task_candidate.ordinal"],
            name=op.f("fk_pick_task_id_win"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pick")),
        sa.UniqueConstraint(
            "annotator_id", "idempotency_key", name=op.f("uq_pick_annotator_id_idempotency_key")
        ),
        sa.UniqueConstraint(
            "task_id",
            "annotator_id",
            "revision",
            name=op.f("uq_pick_task_id_annotator_id_revision"),
        ),
    )
    op.create_index(op.f("ix_pick_assignment_id"), "pick", ["assignment_id"], unique=False)
    op.create_index(
        "uq_pick_current_annotator",
        "pick",
        ["task_id", "annotator_id"],
        unique=True,
        sqlite_where=sa.text("status = 'current'"),
        postgresql_where=sa.text("status = 'current'"),
    )
    op.create_index(
        "uq_pick_current_assignment",
        "pick",
        ["assignment_id"],
        unique=True,
        sqlite_where=sa.text("status = 'current'"),
        postgresql_where=sa.text("status = 'current'"),
    )


def downgrade() -> None:
    for table in (
        "pick",
        "task_candidate",
        "assignment",
        "task",
        "candidate",
        "auth_session",
        "user_account",
        "snapshot",
        "setting",
        "run",
        "prompt",
    ):
        op.drop_table(table)
