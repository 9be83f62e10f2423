"""What comes out of a store, and what comes back: snapshot content, snapshots, runs, counts."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

from sqlalchemy import exists, func, select, update
from sqlalchemy.orm import Session

from annotate.assignment import keyed_digest
from annotate.schema import Candidate, Outcome, Pick, Prompt, Question, Run, Split, Task
from annotate.store.audit import append_event
from annotate.store.checks import CHECK_KINDS
from annotate.store.content import candidate_record, prompt_record
from annotate.store.details import NO_DETAILS, Details, load_details
from annotate.store.engine import StoreBase, batches
from annotate.store.errors import NotFoundError
from annotate.store.models import LabelEvent, SnapshotEntry, StoreStatus
from annotate.store.tasks import load_tasks
from annotate.store.withdrawals import holds
from annotate.tables import (
    AssignmentRow,
    CandidateRow,
    PickRow,
    PromptRow,
    ReviewRow,
    RunRow,
    SnapshotRow,
    TaskRow,
    UserRow,
)


class ResultStore(StoreBase):
    """The part of a store that snapshots and runs are about."""

    def pseudonym(self, name: str) -> str:
        """The name under which an annotator appears in snapshots."""
        return keyed_digest(self._pseudonym_key, "annotator", name).hex()[:16]

    def pick_record(self, row: PickRow, annotator_name: str, details: Details = NO_DETAILS) -> Pick:
        """The snapshot record of a row; its id follows from what it is, not from when it came."""
        annotator = self.pseudonym(annotator_name)
        pick_id = keyed_digest(b"pick", row.task_id, annotator, row.revision).hex()[:32]
        return Pick(
            id=pick_id,
            task_id=row.task_id,
            annotator=annotator,
            revision=row.revision,
            outcome=Outcome(row.outcome),
            win=row.win,
            lose=row.lose,
            reasons=details.reasons,
            regions=details.regions,
            marks=details.marks,
        )

    def labelled(
        self,
        questions: Collection[Question | str] | None = None,
        kinds: Collection[str] | None = None,
        splits: Collection[Split | str] | None = None,
        reviewed: bool = True,
    ) -> tuple[list[Prompt], list[Candidate], list[Task], list[Pick]]:
        """Every current pick with the tasks, candidates and prompts it is about, as of one moment.

        Each argument keeps only what it lists; None keeps all, of ``kinds`` all but the checks of
        `annotate.store.checks`.

        Args:
            reviewed: put a reviewer's answer in the place of those that it overrides, and leave
                out what a reviewer discarded; False gives the annotators' own answers.
        """
        query = (
            select(PickRow, UserRow.name_norm, PromptRow)
            .join(UserRow, UserRow.id == PickRow.annotator_id)
            .join(TaskRow, TaskRow.id == PickRow.task_id)
            .join(PromptRow, PromptRow.id == TaskRow.prompt_id)
            .where(PickRow.status == "current")
        )
        if questions is not None:
            query = query.where(TaskRow.question.in_([Question(q).value for q in questions]))
        if kinds is None:
            query = query.where(TaskRow.kind.not_in(CHECK_KINDS))
        else:
            query = query.where(TaskRow.kind.in_(list(kinds)))
        if splits is not None:
            query = query.where(PromptRow.split.in_([Split(s).value for s in splits]))
        picks: list[Pick] = []
        task_ids: set[str] = set()
        prompts: dict[str, Prompt] = {}
        with self._read() as session:
            rows = session.execute(query).all()
            details = load_details(session, (pick.id for pick, _, _ in rows))
            for pick, name, prompt in rows:
                picks.append(self.pick_record(pick, name, details.get(pick.id, NO_DETAILS)))
                task_ids.add(pick.task_id)
                if prompt.id not in prompts:
                    prompts[prompt.id] = prompt_record(prompt)
            if reviewed:
                picks = self._with_reviews(session, picks)
                task_ids = {pick.task_id for pick in picks}
            tasks = load_tasks(session, task_ids)
            shown = {c for task in tasks for c in task.candidate_ids}
            judged = {task.prompt_id for task in tasks}
            candidates = [
                candidate_record(row)
                for batch in batches(shown)
                for row in session.scalars(select(CandidateRow).where(CandidateRow.id.in_(batch)))
            ]
        # Sorted here and not in SQL, where the order of text follows the server's locale.
        return (
            sorted((p for p in prompts.values() if p.id in judged), key=lambda p: p.id),
            sorted(candidates, key=lambda c: c.id),
            tasks,
            sorted(picks, key=lambda p: p.id),
        )

    def _with_reviews(self, session: Session, picks: list[Pick]) -> list[Pick]:
        """The picks as the newest review of each task leaves them."""
        newest: dict[str, tuple[ReviewRow, str]] = {}
        for batch in batches({pick.task_id for pick in picks}):
            query = (
                select(ReviewRow, UserRow.name_norm)
                .join(UserRow, UserRow.id == ReviewRow.reviewer_id)
                .where(ReviewRow.task_id.in_(batch), holds())
                .order_by(ReviewRow.id)
            )
            newest.update((row.task_id, (row, name)) for row, name in session.execute(query))
        settled = {
            task_id: (row, name)
            for task_id, (row, name) in newest.items()
            if row.decision in ("override", "discard")
        }
        kept = [pick for pick in picks if pick.task_id not in settled]
        for task_id, (row, name) in settled.items():
            if row.decision == "override":
                kept.append(self._adjudicated(task_id, row, name))
        return kept

    def _adjudicated(self, task_id: str, row: ReviewRow, reviewer_name: str) -> Pick:
        reviewer = self.pseudonym(reviewer_name)
        facts = (row.outcome, row.win, row.lose)
        return Pick(
            id=keyed_digest(b"pick", "review", task_id, reviewer, *facts).hex()[:32],
            task_id=task_id,
            annotator=reviewer,
            outcome=Outcome(row.outcome or ""),
            win=row.win,
            lose=row.lose,
        )

    def add_snapshot(
        self, digest: str, folder: str, counts: dict[str, int], task_ids: Collection[str] = ()
    ) -> None:
        """Remember that a snapshot was cut; again with the same digest changes its folder.

        Args:
            task_ids: the tasks whose picks it has. Those that every annotator has answered close.
        """
        unanswered = exists().where(
            AssignmentRow.task_id == TaskRow.id, AssignmentRow.state.in_(["open", "leased"])
        )
        with self._write() as session:
            for batch in batches(sorted(task_ids)):
                session.execute(
                    update(TaskRow)
                    .where(TaskRow.id.in_(batch), TaskRow.closed_at.is_(None), ~unanswered)
                    .values(closed_at=datetime.now(UTC))
                    .execution_options(synchronize_session=False)
                )
            append_event(session, None, "snapshot", f"snapshot:{digest}", {"counts": counts})
            row = session.get(SnapshotRow, digest)
            if row is None:
                row = SnapshotRow(digest=digest, created_at=datetime.now(UTC))
                session.add(row)
            row.folder, row.counts = folder, counts

    def snapshots(self) -> list[SnapshotEntry]:
        """The snapshots that were cut here, newest first."""
        with self._read() as session:
            rows = session.scalars(select(SnapshotRow).order_by(SnapshotRow.created_at.desc()))
            return [
                SnapshotEntry(row.digest, row.folder, row.counts, row.created_at) for row in rows
            ]

    def add_run(self, run: Run) -> Run:
        """Add a run, or bring it up to date when its id is known; the stored run."""
        values = run.model_dump(exclude={"created_at"})
        with self._write() as session:
            row = session.get(RunRow, run.id)
            if row is None:
                row = RunRow(created_at=run.created_at or datetime.now(UTC))
                session.add(row)
            for name, value in values.items():
                setattr(row, name, value)
            session.flush()
            return _run(row)

    def run(self, run_id: str) -> Run:
        """The run of that id."""
        with self._read() as session:
            row = session.get(RunRow, run_id)
            if row is None:
                raise NotFoundError(f"there is no run {run_id!r}")
            return _run(row)

    def runs(self, kind: str | None = None) -> list[Run]:
        """Every run, or those of one kind, newest first."""
        query = select(RunRow).order_by(RunRow.created_at.desc(), RunRow.id)
        if kind is not None:
            query = query.where(RunRow.kind == kind)
        with self._read() as session:
            return [_run(row) for row in session.scalars(query)]

    def label_events(
        self, since: datetime | None = None, newest: int | None = None
    ) -> list[LabelEvent]:
        """The current answers given since then, oldest first; at most the ``newest`` of them."""
        query = (
            select(PickRow, UserRow.name, TaskRow.question)
            .join(UserRow, UserRow.id == PickRow.annotator_id)
            .join(TaskRow, TaskRow.id == PickRow.task_id)
            .where(PickRow.status == "current")
            .order_by(PickRow.submitted_at.desc(), PickRow.id.desc())
            .limit(newest)
        )
        if since is not None:
            query = query.where(PickRow.submitted_at >= since)
        with self._read() as session:
            return [
                LabelEvent(
                    pick.submitted_at,
                    name,
                    Question(question),
                    Outcome(pick.outcome),
                    pick.active_ms,
                )
                for pick, name, question in reversed(session.execute(query).all())
            ]

    def status(self) -> StoreStatus:
        """How many of everything there are."""
        with self._read() as session:
            return StoreStatus(
                prompts=_count(session, PromptRow),
                candidates=_count(session, CandidateRow),
                tasks=_count(session, TaskRow),
                slots=_count_by(session, AssignmentRow.state),
                picks=_count_by(session, PickRow.outcome, PickRow.status == "current"),
                users=_count_by(session, UserRow.role, UserRow.is_active),
                snapshots=_count(session, SnapshotRow),
                runs=_count(session, RunRow),
            )


def _run(row: RunRow) -> Run:
    return Run.model_validate({name: getattr(row, name) for name in Run.model_fields})


def _count(session: Session, row: type) -> int:
    return session.scalar(select(func.count()).select_from(row)) or 0


def _count_by(session: Session, column, *where) -> dict[str, int]:
    query = select(column, func.count()).where(*where).group_by(column)
    return dict(sorted(session.execute(query).all()))
