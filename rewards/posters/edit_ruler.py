"""Measures an edited poster from its pixels: was the instruction met, and was the rest left alone.

Every measurement asks one question: on the way from a wrong picture to the right one, how far is
the picture in hand? For pixels o and pictures w (wrong), r (right), all in [0, 1],

    t = <o - w, r - w> / |r - w|^2

is 0 at the wrong picture and 1 at the right one; half-way counts as wrong, and from 0.7 on as
right, so that the softness of an autoencoder costs nothing. The wrong pictures of a field of the
specification are the posters that differ from the right one in this field alone, so that the
least t over them also says that no other value was painted. The unchanged source is one of
the wrong pictures of the edit itself.

    instruction = edit * region * prod over the fields that were to stay of (1 + m) / 2

is therefore exactly 0 for an unchanged copy and exactly 1 for the truth; a field that was changed
without being asked halves it. Like the ruler of generated posters it is read by evaluation alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from rewards.posters.draw import DESIGN, perfect
from rewards.posters.edits import DrawnEdit, PosterEdit, draw_edit
from rewards.posters.spec import CHOICES

__all__ = ["MET", "EditReading", "outside_mask_psnr", "read_edit"]

MET = 0.5
"""The instruction counts as met above this: one other field changed entirely is too much."""
_WRONG, _RIGHT = 0.5, 0.7


@dataclass(frozen=True)
class EditReading:
    """What the ruler finds in one edited picture."""

    instruction: float
    """In [0, 1]: 0 for an unchanged copy of the source, 1 for the truth."""
    outside_mask_psnr: float
    """dB against the truth where the edit changes nothing; infinite where all is equal."""
    measurements: dict[str, float]
    """``edit``, ``region``, and each field that was to stay, in [0, 1]."""

    @property
    def met(self) -> bool:
        return self.instruction > MET


def read_edit(image: Image.Image, edit: PosterEdit) -> EditReading:
    """Measure ``image``, of any size, as the outcome of ``edit``; it is read at 128 x 128."""
    if image.size != (DESIGN, DESIGN):
        image = image.resize((DESIGN, DESIGN), Image.Resampling.LANCZOS)
    drawn = draw_edit(edit)
    pixels, right = _unit(np.asarray(image.convert("RGB"))), _unit(np.asarray(drawn.target))
    source = _unit(np.asarray(drawn.source))
    measured = {name: _least(pixels, right, edit, name) for name in CHOICES}
    asked = 1.0 if edit.kind == "extend" else measured.pop(edit.part)
    own = min(asked, _ramp(_progress(pixels, source, right)))
    region = _region(pixels, source, right, drawn.mask)
    kept = math.prod((1.0 + m) / 2.0 for m in measured.values())
    return EditReading(
        instruction=own * region * kept,
        outside_mask_psnr=outside_mask_psnr(image, drawn),
        measurements={"edit": own, "region": region, **measured},
    )


def outside_mask_psnr(image: Image.Image, drawn: DrawnEdit) -> float:
    """``10 log10(255^2 / mean squared error)``, in dB, over the pixels that no edit touches."""
    difference = np.asarray(image.convert("RGB"), float) - np.asarray(drawn.target, float)
    error = float((difference[~drawn.mask] ** 2).mean())
    return math.inf if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def _least(pixels: np.ndarray, right: np.ndarray, edit: PosterEdit, field: str) -> float:
    """The field's measurement: the least over all posters that are wrong in it alone."""
    target = edit.target
    values = [value for value in CHOICES[field] if value != getattr(target, field)]
    wrong = [perfect(replace(target, **{field: value})) for value in values]
    return min(_ramp(_progress(pixels, _unit(picture), right)) for picture in wrong)


def _progress(pixels: np.ndarray, wrong: np.ndarray, right: np.ndarray) -> float:
    way = right - wrong
    return float(((pixels - wrong) * way).sum() / (way**2).sum())


def _region(pixels: np.ndarray, source: np.ndarray, right: np.ndarray, mask: np.ndarray) -> float:
    """1 while the edited region errs by less than 0.6 of what the source errs there, 0 from 1."""
    off = np.linalg.norm((pixels - right)[mask]) / np.linalg.norm((source - right)[mask])
    return float(np.clip((1.0 - off) / 0.4, 0.0, 1.0))


def _ramp(progress: float) -> float:
    return float(np.clip((progress - _WRONG) / (_RIGHT - _WRONG), 0.0, 1.0))


def _unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float64) / 255.0
