"""The bars of editing on the poster world; `benchmarks.edit` measures them."""

from __future__ import annotations

import statistics

from benchmarks.formulas import Bar, Raw

__all__ = ["EDIT"]

COUNT = 200


def instruction_met(raw: Raw) -> float:
    """Percent of the edits; a ruler by which an unchanged copy scored would measure nothing."""
    rows = raw["edits"]
    if len(rows) != COUNT:
        raise ValueError(f"the record has {len(rows)} edits, expected {COUNT}")
    if copies := [row["words"] for row in rows if row["copy_instruction"] != 0]:
        raise ValueError(f"unchanged copies score above 0 for {copies}")
    return 100 * statistics.fmean(row["met"] for row in rows)


def psnr_gap(raw: Raw) -> float:
    """Decibels that the edited pictures lack outside the mask, mean over all edits."""
    return statistics.fmean(row["trip_outside_psnr"] - row["outside_psnr"] for row in raw["edits"])


EDIT = (
    Bar(
        "edit.instruction_met",
        "%",
        "of 200 held-out poster edits, those that the ruler finds carried out after SFT",
        "90; an unchanged copy scores 0",
        instruction_met,
    ),
    Bar(
        "edit.outside_mask_psnr_gap_db",
        "dB",
        "PSNR against the truth outside the edited region, no pixels or latents pasted: what the "
        "edited pictures lack, mean",
        "the truth once through the autoencoder: at most 0.5",
        psnr_gap,
    ),
)
