"""What a pick says beyond best and worst: reasons, faulty regions, ratings and thumbs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.schema import Mark, Outcome, Reason, Region
from annotate.store.engine import batches
from annotate.store.errors import StoreError
from annotate.store.models import ShownAnswer, ShownMark, ShownRegion, Submission
from annotate.tables import (
    AssignmentRow,
    CandidateRow,
    PickMarkRow,
    PickReasonRow,
    PickRegionRow,
    PickRow,
    TaskCandidateRow,
)


@dataclass(frozen=True)
class Details:
    """The details of one pick by ordinals, in the order in which a snapshot has them."""

    reasons: tuple[Reason, ...] = ()
    regions: tuple[Region, ...] = ()
    marks: tuple[Mark, ...] = ()


NO_DETAILS = Details()


def details_of(
    submission: Submission, order: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> Details:
    """The details of a submission, its positions turned into ordinals.

    Args:
        order: ``order[position]`` is the ordinal shown there.
        sizes: (width, height) in pixels by ordinal.

    Raises:
        StoreError: a position that was not shown, or a region outside its image.
    """
    shown = [*submission.regions, *submission.marks]
    outside = [item.position for item in shown if item.position >= len(order)]
    if outside:
        raise StoreError(f"position {outside[0]} was not shown; there are 0 to {len(order) - 1}")
    regions = [
        Region(
            ordinal=order[region.position],
            **region.model_dump(include={"x", "y", "width", "height", "criterion"}),
        )
        for region in submission.regions
    ]
    for region in regions:
        width, height = sizes[region.ordinal]
        if region.x + region.width > width or region.y + region.height > height:
            raise StoreError(
                f"the region ends at ({region.x + region.width}, {region.y + region.height}), "
                f"outside its image of {width} x {height} pixels"
            )
    marks = [
        Mark(ordinal=order[mark.position], rating=mark.rating, thumb=mark.thumb)
        for mark in submission.marks
    ]
    return _sorted_details(submission.reasons, regions, marks)


def save_details(session: Session, pick: PickRow, details: Details) -> None:
    """Write the rows of a pick that has its id."""
    session.add_all(
        PickReasonRow(pick_id=pick.id, target=reason.target, criterion=reason.criterion.value)
        for reason in details.reasons
    )
    session.add_all(
        PickRegionRow(
            pick_id=pick.id, number=number, task_id=pick.task_id, **region.model_dump(mode="json")
        )
        for number, region in enumerate(details.regions)
    )
    session.add_all(
        PickMarkRow(pick_id=pick.id, task_id=pick.task_id, **mark.model_dump())
        for mark in details.marks
    )


def load_details(session: Session, pick_ids: Iterable[int]) -> dict[int, Details]:
    """The details of those picks that have any, by the pick's id."""
    reasons: dict[int, list[Reason]] = defaultdict(list)
    regions: dict[int, list[Region]] = defaultdict(list)
    marks: dict[int, list[Mark]] = defaultdict(list)
    for batch in batches(pick_ids):
        for row in session.scalars(select(PickReasonRow).where(PickReasonRow.pick_id.in_(batch))):
            reasons[row.pick_id].append(_record(Reason, row))
        for row in session.scalars(select(PickRegionRow).where(PickRegionRow.pick_id.in_(batch))):
            regions[row.pick_id].append(_record(Region, row))
        for row in session.scalars(select(PickMarkRow).where(PickMarkRow.pick_id.in_(batch))):
            marks[row.pick_id].append(_record(Mark, row))
    found = reasons.keys() | regions.keys() | marks.keys()
    return {
        pick_id: _sorted_details(reasons[pick_id], regions[pick_id], marks[pick_id])
        for pick_id in found
    }


def image_sizes(session: Session, task_id: str) -> list[tuple[int, int]]:
    """(width, height) in pixels of a task's candidates, by ordinal."""
    query = (
        select(CandidateRow.width, CandidateRow.height)
        .join(TaskCandidateRow, TaskCandidateRow.candidate_id == CandidateRow.id)
        .where(TaskCandidateRow.task_id == task_id)
        .order_by(TaskCandidateRow.ordinal)
    )
    return [(width, height) for width, height in session.execute(query)]


def withdrawn_answer(session: Session, slot: AssignmentRow) -> ShownAnswer | None:
    """The answer to this slot that its annotator took back last, by positions."""
    row = session.scalar(
        select(PickRow)
        .where(
            PickRow.assignment_id == slot.id,
            PickRow.annotator_id == slot.annotator_id,
            PickRow.status == "withdrawn",
        )
        .order_by(PickRow.revision.desc())
        .limit(1)
    )
    if row is None:
        return None
    details = load_details(session, [row.id]).get(row.id, NO_DETAILS)
    return _shown_answer(row, details, slot.display_order or [])


def _shown_answer(pick: PickRow, details: Details, order: Sequence[int]) -> ShownAnswer:
    """A pick by the positions at which its annotator saw the candidates."""
    position = {ordinal: place for place, ordinal in enumerate(order)}
    return ShownAnswer(
        outcome=Outcome(pick.outcome),
        win_position=None if pick.win is None else position[pick.win],
        lose_position=None if pick.lose is None else position[pick.lose],
        reasons=details.reasons,
        regions=tuple(
            ShownRegion(position=position[region.ordinal], **region.model_dump(exclude={"ordinal"}))
            for region in details.regions
        ),
        marks=tuple(
            ShownMark(position=position[mark.ordinal], rating=mark.rating, thumb=mark.thumb)
            for mark in details.marks
        ),
    )


def _record(record, row):
    return record.model_validate({name: getattr(row, name) for name in record.model_fields})


def _sorted_details(
    reasons: Iterable[Reason], regions: Iterable[Region], marks: Iterable[Mark]
) -> Details:
    return Details(
        tuple(sorted(reasons, key=lambda r: (r.target, r.criterion))),
        tuple(sorted(regions, key=lambda r: (r.ordinal, r.y, r.x, r.height, r.width))),
        tuple(sorted(marks, key=lambda m: m.ordinal)),
    )
