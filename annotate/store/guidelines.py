"""The labelling guideline: numbered versions that picks point at."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import func, select

from annotate.store.engine import StoreBase, require_rows
from annotate.store.errors import ConflictError, NotFoundError, StoreError
from annotate.store.models import GUIDELINE_AUTHORS, Guideline, GuidelineVersion
from annotate.tables import CandidateRow, GuidelineRow, UserRow


class GuidelineStore(StoreBase):
    """The part of a store that says how to judge."""

    def add_guideline(
        self, author_id: int, guideline: Guideline, replaces: int | None
    ) -> GuidelineVersion:
        """Write the next version; what is stored already is never changed.

        Args:
            replaces: the version that the author started from, None for the first.

        Raises:
            ConflictError: another author has written a version since.
            StoreError: the author is no lead.
        """
        with self._write() as session:
            author = session.get(UserRow, author_id)
            if author is None or author.role not in GUIDELINE_AUTHORS:
                raise StoreError(
                    "a guideline is written by a lead or an admin", code="guideline_role"
                )
            newest = session.scalar(select(func.max(GuidelineRow.version)))
            if newest != replaces:
                raise ConflictError(
                    f"the guideline is at version {newest} by now, this was written from "
                    f"version {replaces}; load it again and bring your changes in",
                    code="guideline_changed",
                )
            shown = {i for e in guideline.examples for i in (e.win_id, e.lose_id)}
            require_rows(session, CandidateRow, shown, "candidate")
            row = GuidelineRow(
                version=(newest or 0) + 1,
                content=guideline.model_dump(mode="json"),
                author_id=author_id,
                created_at=datetime.now(UTC),
            )
            session.add(row)
            return _version(row, author.name)

    def guideline_version(self) -> int | None:
        """The number of the newest version; None for a studio that has written none."""
        with self._read() as session:
            return session.scalar(select(func.max(GuidelineRow.version)))

    def guideline(self, version: int | None = None) -> GuidelineVersion | None:
        """That version, by default the newest; None for a studio that has written none."""
        query = select(GuidelineRow, UserRow.name).join(
            UserRow, UserRow.id == GuidelineRow.author_id
        )
        if version is not None:
            query = query.where(GuidelineRow.version == version)
        with self._read() as session:
            found = session.execute(query.order_by(GuidelineRow.version.desc()).limit(1)).first()
        if found is None and version is not None:
            raise no_version(version)
        return _version(*found) if found else None


def no_version(version: int) -> NotFoundError:
    """The refusal of a version that nobody wrote."""
    return NotFoundError(
        f"there is no version {version} of the guideline", code="no_guideline", value=version
    )


def _version(row: GuidelineRow, author: str) -> GuidelineVersion:
    return GuidelineVersion(
        row.version, Guideline.model_validate(row.content), author, row.created_at
    )
